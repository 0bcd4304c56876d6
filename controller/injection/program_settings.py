"""The settings of the webhook program: ``injector.yaml``, read strictly into one immutable value.

Relative paths are relative to the file that names them. Refusals are :class:`~controller.errors.ConfigError` with field
and remedy, as for ``controller.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.errors import ConfigError, refusal
from controller.injection.annotations import WEAKENING
from controller.injection.settings import InjectionSettings, read_injection
from controller.settings_file import read_settings
from graph.fields import (
    Address,
    Check,
    Fields,
    integer,
    listen_address,
    refuse_taken,
    seconds,
    text,
    word,
)

LISTEN = Address("0.0.0.0", 8443)
HEALTH_LISTEN = Address("0.0.0.0", 8081)


@dataclass(frozen=True, slots=True)
class InjectorSettings:
    """Everything that the webhook program is told from outside. Durations are in seconds.

    :param injection: what is injected, and where
    :param certificate: PEM file: the certificate that API servers see, with its chain
    :param key: PEM file: its key
    :param listen: HTTPS, for API servers
    :param health_listen: plain HTTP: ``/healthz``, ``/readyz``, ``/metrics``
    :param certificate_interval: between two looks at the certificate's files
    :param body_bytes: of one review; API servers send at most 3 MiB of an object, twice with updates
    :param buffered_bytes: of all reviews that are being read; more are answered 503
    :param deadline: for reading one review; shorter than the webhook's ``timeoutSeconds``
    :param connections: alive at once; beyond them the one that has said nothing for longest is closed, and as many
        handshakes under way, of which the oldest is ended
    :param drain_seconds: that the program goes on serving after SIGTERM, until API servers have heard that it ends
    """

    injection: InjectionSettings
    certificate: Path
    key: Path
    listen: Address = LISTEN
    health_listen: Address = HEALTH_LISTEN
    certificate_interval: float = 5.0
    body_bytes: int = 8 << 20
    buffered_bytes: int = 128 << 20
    deadline: float = 5.0
    connections: int = 4096
    drain_seconds: float = 5.0
    log_level: str = "info"

    @classmethod
    def load(cls, path: Path) -> InjectorSettings:
        """Read a settings file.

        :raises ConfigError: when it can not be read, is not YAML, or breaks a rule of :meth:`parse`
        """
        return cls.parse(read_settings(path), base=path.absolute().parent)

    @classmethod
    def parse(cls, document: object, base: Path) -> InjectorSettings:
        """Check a document that was read from YAML and make settings of it.

        :param base: the folder that relative paths start from
        :raises ConfigError: naming the field, what is wrong with it and the remedy
        """
        path = _path(base)
        fields = Fields(document, refusal(ConfigError), noun="setting")
        settings = cls(
            injection=fields.take("injection", read_injection(WEAKENING)),
            certificate=fields.take("certificate", path),
            key=fields.take("key", path),
            listen=fields.take("listen", listen_address, LISTEN),
            health_listen=fields.take("health_listen", listen_address, HEALTH_LISTEN),
            certificate_interval=fields.take("certificate_interval", seconds(0.05, 3600), 5.0),
            body_bytes=fields.take("body_bytes", integer(64 << 10, 64 << 20), 8 << 20),
            buffered_bytes=fields.take("buffered_bytes", integer(1 << 20, 1 << 34), 128 << 20),
            deadline=fields.take("deadline", seconds(0.1, 30), 5.0),
            connections=fields.take("connections", integer(1, 100_000), 4096),
            drain_seconds=fields.take("drain_seconds", seconds(0, 300), 5.0),
            log_level=fields.take("log_level", word("debug", "info", "warning", "error"), "info"),
        )
        fields.finish()
        if settings.buffered_bytes < settings.body_bytes:
            raise ConfigError(
                f"{settings.buffered_bytes} is less than body_bytes, which is {settings.body_bytes}",
                field="buffered_bytes",
                remedy="let at least one review of the largest size be read",
            )
        refuse_taken([("listen", settings.listen), ("health_listen", settings.health_listen)], refusal(ConfigError))
        return settings


def read_injection_section(path: Path) -> InjectionSettings:
    """The section ``injection:`` of a settings file alone, for files that are injected without a webhook.

    :raises ConfigError: when it can not be used
    """
    document = read_settings(path)
    fields = Fields({"injection": document.get("injection")}, refusal(ConfigError), noun="setting")
    return fields.take("injection", read_injection(WEAKENING))


def _path(base: Path) -> Check[Path]:
    return lambda value: base / text(4096)(value)
