"""Names: of workloads, and of what is outside the mesh. Nothing that could be two things is a name."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from graph.errors import InvalidValue

#: The namespace of what is not a workload: ``-/192.0.2.7``. It cannot be a Kubernetes name, so nothing collides.
EXTERNAL_NAMESPACE = "-"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
#: A DNS name of at least two labels, the last of which begins with a letter, so that no IP address is one
#: (RFC 1123 section 2.1); underscores occur in names of services.
_HOST = re.compile(r"(?=.{3,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def is_host(text: str) -> bool:
    """Whether ``text`` is a DNS name as we write it: lower case, without a final dot, two labels or more."""
    return _HOST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class WorkloadRef:
    """The name of a workload, ``namespace/name``, or of something outside the mesh, ``-/address`` or ``-/host``.

    What people say about the outside may be wider, a network or all names below a domain: :mod:`graph.outside` reads
    those, and :meth:`parse` does not, because no connection begins or ends at one.
    """

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str, *, field: str = "workload") -> Self:
        """Read ``namespace/name``.

        :raises InvalidValue: naming ``field``, when a part is missing or is not a Kubernetes name (RFC 1123)
        """
        namespace, slash, name = text.partition("/")
        if not slash:
            raise InvalidValue(field, f"{text!r} names no namespace", "write it as namespace/name, such as shop/cart")
        if namespace == EXTERNAL_NAMESPACE:
            return cls.external_host(name, field=field) if is_host(name) else cls.external(name, field=field)
        if not _LABEL.fullmatch(namespace):
            raise InvalidValue(
                field,
                f"{namespace!r} is not a namespace name",
                "use lower-case letters, digits and '-', 63 characters at most",
            )
        if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
            raise InvalidValue(
                field,
                f"{name!r} is not a workload name",
                "use lower-case letters, digits, '-' and '.', 253 characters at most",
            )
        return cls(namespace, name)

    @classmethod
    def external(cls, address: str, *, field: str = "address") -> Self:
        """Name something outside the inventory by its IP address.

        :raises InvalidValue: naming ``field``, when ``address`` is no IP address
        """
        try:
            if "%" in address:  # a zone is local to the machine that wrote it, and free text
                raise ValueError
            return cls(EXTERNAL_NAMESPACE, str(ipaddress.ip_address(address)))
        except ValueError:
            raise InvalidValue(
                field, f"{address!r} is not an IP address", "write it as 192.0.2.7 or 2001:db8::7"
            ) from None

    @classmethod
    def external_host(cls, host: str, *, field: str = "host") -> Self:
        """Name something outside the inventory by its DNS name, in lower case and without a final dot.

        :raises InvalidValue: naming ``field``, when ``host`` is no such name
        """
        if not is_host(host):
            raise InvalidValue(field, f"{host[:64]!r} is not a host name", "write it as api.example.com")
        return cls(EXTERNAL_NAMESPACE, host)

    @property
    def is_external(self) -> bool:
        return self.namespace == EXTERNAL_NAMESPACE

    @property
    def host(self) -> str:
        """The DNS name of something external that is known by it; empty otherwise."""
        return self.name if self.is_external and is_host(self.name) else ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class InspectedHost:
    """A name and port outside the mesh. What a workload that inspects it says there is read by its own sidecar, which
    ends the application's TLS for that, and judged operation by operation.

    :param host: one name, in lower case; never a pattern, because a certificate is made for it
    """

    host: str
    port: int = 443

    def __post_init__(self) -> None:
        if not is_host(self.host) or "_" in self.host:
            raise InvalidValue(
                "host", f"{self.host[:64]!r} is not one host name", "write api.example.com, in lower case, without '*'"
            )
        if not 1 <= self.port <= 65535:
            raise InvalidValue("port", f"{self.port} is not a port", "use a port from 1 to 65535")

    @classmethod
    def parse(cls, text: str, *, field: str = "inspects") -> Self:
        """Read ``host:port``, or ``host`` alone for port 443.

        :raises InvalidValue: naming ``field``
        """
        host, colon, port = text.partition(":")
        if colon and not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise InvalidValue(field, f"{text[:80]!r} has no port behind its ':'", "write it as api.example.com:443")
        try:
            return cls(host, int(port) if colon else 443)
        except InvalidValue as error:
            raise InvalidValue(field, error.problem, error.remedy) from None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
