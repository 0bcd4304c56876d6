"""The annotations that two read: the injector for a pod's own sidecar, and the controller's inventory for the mesh.

``hedgerow.dev/opaque-ports`` may stand on a pod, on a Service and on a namespace, ``hedgerow.dev/inspect-egress`` on a
pod, and ``hedgerow.dev/inspectable-hosts``, which permits the latter, on a namespace. Pure; refusals are
:class:`~graph.fields.Unfit`. What they mean together is :mod:`controller.kube.inventory.said`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from certs.inspection import MAX_HOSTS
from graph.errors import InvalidValue
from graph.fields import Unfit, integer, shown
from graph.model import InspectedHost, is_host

#: A list in an annotation has no more entries than this, nor do its ranges name more ports.
MAX_ENTRIES: Final = 256
#: Characters of one annotation's value.
MAX_VALUE: Final = 4096

_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_is_port = integer(1, 65535)


def listed[T](read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Reads entries with commas between them."""

    def read_all(written: str) -> list[T]:
        parts = [part.strip() for part in written.split(",")] if written.strip() else []
        if len(parts) > MAX_ENTRIES:
            raise Unfit(f"{len(parts)} entries", f"write at most {MAX_ENTRIES}")
        return [read(part) for part in parts]

    return read_all


def port(written: str) -> int:
    """A port's number."""
    if not written.isascii() or not written.isdigit() or len(written) > 9:
        raise Unfit(f"{shown(written)} is not such a number", "write a whole number from 1 to 65535")
    return _is_port(int(written))


def opaque_ports(written: str) -> list[int]:
    """Ports and ranges of ports, such as ``3306, 9000-9010``, each once and sorted."""
    found: set[int] = set()
    for first, last in listed(_range)(written):
        if last - first >= MAX_ENTRIES:
            raise Unfit(f"{first}-{last} are {last - first + 1} ports", f"name at most {MAX_ENTRIES}")
        found.update(range(first, last + 1))
    if len(found) > MAX_ENTRIES:
        raise Unfit(f"{len(found)} ports", f"name at most {MAX_ENTRIES}")
    return sorted(found)


def _range(written: str) -> tuple[int, int]:
    both = _RANGE.fullmatch(written)
    first, last = (port(both[1]), port(both[2])) if both else (port(written), port(written))
    if first > last:
        raise Unfit(f"{shown(written)} ends before it begins", "write the smaller port first")
    return first, last


def inspected_hosts(written: str) -> tuple[InspectedHost, ...]:
    """``api.example.com, pay.example.com:8443``: names alone, sorted."""
    found = tuple(sorted(set(listed(_inspected)(written))))
    if len(found) > MAX_HOSTS:
        raise Unfit(f"{len(found)} hosts", f"name at most {MAX_HOSTS}")
    return found


def _inspected(written: str) -> InspectedHost:
    try:
        return InspectedHost.parse(written)
    except InvalidValue as error:
        raise Unfit(error.problem, error.remedy) from None


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Which hosts may be inspected: one, ``*.example.com`` for all below it, or ``*`` for every one.

    :param host: without ``*.``; empty: every one
    """

    host: str
    below: bool = False

    def permits(self, host: str) -> bool:
        """Whether ``host`` is among them."""
        return not self.host or (host.endswith(f".{self.host}") if self.below else host == self.host)


def inspectable_hosts(written: str) -> tuple[HostPattern, ...]:
    """What a namespace permits its pods to inspect."""
    return tuple(listed(_pattern)(written))


def _pattern(written: str) -> HostPattern:
    if written == "*":
        return HostPattern("")
    bare = written.removeprefix("*.")
    if not is_host(bare) or "_" in bare:
        raise Unfit(f"{shown(written)} is no host", "write api.example.com, *.example.com or *, in lower case, no port")
    return HostPattern(bare, below=bare != written)
