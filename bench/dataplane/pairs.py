"""A pair: two programs, one at each end of a bed, that make plaintext mutual TLS and plaintext again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.dataplane.launch import Program
from bench.dataplane.measures import Lane
from bench.dataplane.network import Bed, Place


@dataclass(frozen=True, slots=True)
class Pair:
    """What a load is sent through.

    :param fronts: where a load of a lane connects to, from the bed's client namespace
    :param client: the programs of the client's end, ``server`` those of the other
    :param tls: where the server's end takes mutual TLS; None without any
    :param alpn: what a client offers there
    :param impostor: a front that leads to a server of a foreign authority, where no answer may ever come from
    :param denied: the lanes whose rules name operations
    :param beside: further programs that it needs and that are not it
    """

    name: str
    bed: Bed
    fronts: Mapping[Lane, Place]
    client: tuple[Program, ...] = ()
    server: tuple[Program, ...] = ()
    tls: Place | None = None
    alpn: tuple[str, ...] = ()
    impostor: Place | None = None
    denied: frozenset[Lane] = frozenset()
    beside: tuple[Program, ...] = ()

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*self.client, *self.server)

    def cpu(self) -> float:
        """Seconds of processor time of both ends so far."""
        return sum(program.cpu() for program in self.programs)

    def rss(self) -> int:
        """Resident bytes of the end that has more."""
        return max(sum(program.rss() for program in end) for end in (self.client, self.server))

    def stop(self) -> None:
        for program in (*self.programs, *self.beside):
            program.stop()
