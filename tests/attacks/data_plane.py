"""A data plane as a process of its own, on loopback and without capture: what is measured is its memory and its time.

The first line of standard input is its configuration; each further line is answered with the state.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from certs.ca import CertificateAuthority
from graph.wire import codec
from graph.wire import hedgerow_pb2 as pb
from sidecar.authority import PolicyAuthority
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from sidecar.http.settings import HttpSettings
from sidecar.http.site import HttpSite
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits
from sidecar.settings import Unsynced
from tests.sidecar.dataplane.stand_ins import HeldDirectory, credentials

#: Seconds between two looks at the time that went by.
_BEAT = 0.001


class Counted:
    """A sink that keeps nothing, as the real one keeps sums."""

    def __init__(self) -> None:
        self.open = 0
        self.requests = 0

    def opened(self, record: Any) -> None:
        self.open += not record.closed

    def closed(self, record: Any) -> None:
        self.open -= 1

    def request(self, request: Any) -> None:
        self.requests += 1


def resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


class Process:
    def __init__(self, config: dict[str, Any]) -> None:
        snapshot = codec.decode_snapshot(base64.b64decode(config["snapshot"]))
        own = credentials(
            CertificateAuthority.load(config["authority"].encode()), snapshot.workload.namespace, snapshot.workload.name
        )
        directory = HeldDirectory(
            codec.destination_from_message(pb.Destination.FromString(base64.b64decode(each)))
            for each in config["directory"]
        )
        loop = asyncio.get_running_loop()
        authority = PolicyAuthority(own.identity, Unsynced.DENY, ("127.0.0.1",), time.time, loop.call_later)
        authority.apply(snapshot)
        settings = dict(config["settings"])
        http = HttpSettings(**settings.pop("http", {}))
        limits = Limits(**settings.pop("inspect", {}))
        #: The longest time without a turn since somebody asked last, seconds.
        self.longest = 0.0
        self._at = time.thread_time()
        self.flows = Counted()
        self.taps = Inspection(InspectSettings(ports=frozenset(config["inspected"]), limits=limits))
        self.plane = DataPlane(
            DataPlaneSettings(
                outbound_listen=(),
                inbound_listen=(),
                explicit_inbound=tuple(
                    ExplicitInbound(Address("127.0.0.1", port), Address("127.0.0.1", application))
                    for port, application in config["inbound"]
                ),
                explicit_outbound=tuple(
                    ExplicitOutbound(Address("127.0.0.1", port), Address(*destination))
                    for port, destination in config["outbound"]
                ),
                http=http,
                **settings,
            ),
            authority,
            directory,
            own,
            self.flows,
            taps=self.taps,
        )

    def beat(self) -> None:
        """Notice how long others of the loop had to wait, in our own processor time: what the machine does beside us
        is no part of it."""
        now = time.thread_time()
        self.longest = max(self.longest, now - self._at)
        self._at = now
        asyncio.get_running_loop().call_later(_BEAT, self.beat)

    def state(self) -> dict[str, Any]:
        longest, self.longest = self.longest, 0.0
        site = HttpSite.of(self.plane._fabric)
        return {
            "rss": resident(),
            "longest": longest,
            "live": self.plane.live_connections,
            "open": self.flows.open,
            "requests": self.flows.requests,
            "buffered": self.plane.buffered,
            "holders": self.plane._guards.budget.holders,
            "inbound": len(self.plane.inbound_tunnels),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
            "watched": len(site._watched),
            "inspected": self.taps.lanes,
            "counters": asdict(self.plane.counters),
            "malformed": dict(site.malformed),
            "unobserved": dict(site.unobserved),
            "breaches": dict(self.taps.breaches),
            "unreadable": self.taps.unreadable,
        }


async def run(config: dict[str, Any]) -> None:
    process = Process(config)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    commands, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await process.plane.start()
    process.beat()
    print(json.dumps(process.state()), flush=True)
    while await reader.readline():
        print(json.dumps(process.state()), flush=True)
    process.plane.stop()
    commands.close()
    await asyncio.sleep(0)


def main() -> None:
    config = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]  # the rest is read by asyncio
    with contextlib.suppress(PermissionError):
        os.nice(config["nice"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(config))


if __name__ == "__main__":
    main()
