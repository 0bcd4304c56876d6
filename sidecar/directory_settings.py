"""The section ``directory:`` of ``sidecar.yaml``: how much of the directory a sidecar keeps, and how often it asks."""

from __future__ import annotations

from dataclasses import dataclass

from graph.fields import Fields, integer, seconds, unfit


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """What bounds the directory's answers.

    :param addresses: of destinations that are known at once; of more, the least lately used are let go, and asked for
        again when a connection goes there
    :param waiting: questions that wait for the controller at once; connections that would ask for more are refused
    :param per_second: questions that the controller is asked in a second, beyond a burst of as many as may wait. What
        was asked before is asked again after a reconnect without a limit: connections may depend on it
    :param idle: seconds without use after which an address is let go
    """

    addresses: int = 4096
    waiting: int = 512
    per_second: float = 100.0
    idle: float = 600.0


DEFAULTS = DirectorySettings()


def read_directory(value: object) -> DirectorySettings:
    """Read the section.

    :raises Unfit: naming the setting, what is wrong with it and what to write instead
    """
    fields = Fields(value, unfit, noun="setting")
    found = DirectorySettings(
        addresses=fields.take("addresses", integer(16, 65_536), DEFAULTS.addresses),
        waiting=fields.take("waiting", integer(1, 65_536), DEFAULTS.waiting),
        per_second=float(fields.take("per_second", integer(1, 100_000), int(DEFAULTS.per_second))),
        idle=fields.take("idle", seconds(1, 604_800), DEFAULTS.idle),
    )
    fields.finish()
    return found
