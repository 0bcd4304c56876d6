"""A data plane as a process of its own: reads commands from standard input and answers each with one line of JSON.

Started as root in a pod's network namespace; gives its privileges up once everything is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from certs.ca import CertificateAuthority, SignedChain
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import InboundTls, Mode, Origin, PortRange, Rule, Selector, Snapshot, Verdict, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.sockets import Address
from sidecar.dns.names import LearnedNames, NameTable
from sidecar.dns.proxy import DnsProxy, DnsSettings
from tests.sidecar.dataplane.stand_ins import FlowList, HeldCredentials, HeldDirectory, HeldPolicy


def snapshot_of(workload: str, version: int, wanted: dict[str, Any]) -> Snapshot:
    rules = tuple(
        Rule(
            id=f"override/{number}",
            source=Selector.of(WorkloadRef.parse(rule["from"])),
            destination=Selector.of(WorkloadRef.parse(rule["to"])),
            ports=(PortRange.single(rule["port"]),) if rule.get("port") else (),
            effect=Verdict(rule.get("effect", "allow")),
            origin=Origin(rule.get("origin", "learned")),
        )
        for number, rule in enumerate(wanted.get("rules", []))
    )
    return Snapshot(
        WorkloadRef.parse(workload),
        "hedgerow.test",
        version,
        Mode(wanted.get("inbound", "enforce")),
        Mode(wanted.get("outbound", "enforce")),
        InboundTls(wanted.get("tls", "permissive")),
        rules,
    )


def destination_of(item: dict[str, Any]) -> Destination:
    return Destination(
        item["address"],
        item["port"],
        workload=WorkloadRef.parse(item["workload"]) if item.get("workload") else None,
        service=item.get("service", ""),
        meshed=item.get("meshed", False),
        endpoints=tuple(
            Endpoint(
                endpoint["address"],
                endpoint["port"],
                identity=endpoint.get("identity", ""),
                workload=WorkloadRef.parse(endpoint["workload"]) if endpoint.get("workload") else None,
            )
            for endpoint in item.get("endpoints", [])
        ),
    )


def resident() -> int:
    """Bytes of memory in use."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


class Process:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.identity = SpiffeId.parse(config["identity"])
        self.authority = CertificateAuthority.load(config["authority"].encode())
        self.version = 1
        self.policy = HeldPolicy(snapshot_of(config["workload"], 1, config["policy"]))
        self.directory = HeldDirectory(destination_of(item) for item in config["directory"])
        self.flows = FlowList()
        chain, key = self.sign(config["lifetime"])
        self.credentials = HeldCredentials(
            self.identity, chain.chain_der, key, self.authority.bundle(), chain.not_after
        )
        settings = DataPlaneSettings(
            addresses=frozenset(config["addresses"]),
            outbound_listen=(Address("127.0.0.1", 15001), Address("::1", 15001)),
            inbound_listen=(Address("0.0.0.0", 15006), Address("::", 15006)),
            **config.get("settings", {}),
        )
        self.names = NameTable(300.0)
        for address, hosts in config.get("names", {}).items():
            for host in hosts:
                self.names.bind(host, [(address, 60)], time.time())
        upstreams = tuple(Address(*each) for each in config.get("resolvers", []))
        listen = (Address("127.0.0.1", 15053), Address("::1", 15053))
        self.dns = DnsProxy(DnsSettings(listen, upstreams), self.names, lambda: True) if upstreams else None
        self.plane = DataPlane(
            settings,
            self.policy,
            self.directory,
            self.credentials,
            self.flows,
            names=LearnedNames(self.names, time.time),
        )

    def sign(self, lifetime: float) -> tuple[SignedChain, ec.EllipticCurvePrivateKey]:
        key = new_key()
        instance = self.config["instance"]
        return self.authority.sign_workload(make_csr(key), self.identity, time.time(), lifetime, instance), key

    async def handle(self, command: dict[str, Any]) -> Any:
        match command["do"]:
            case "policy":
                self.version += 1
                self.policy.apply(snapshot_of(self.config["workload"], self.version, command["policy"]))
            case "directory":
                self.directory.known = {
                    (item.address, item.port): item for item in map(destination_of, command["directory"])
                }
            case "renew":
                chain, key = self.sign(command["lifetime"])
                self.credentials.renew(chain.chain_der, key, self.authority.bundle(), chain.not_after)
            case "flows":
                return [
                    {
                        "direction": record.direction,
                        "source": str(record.source.ref()) if record.source.workload or record.source.address else "",
                        "destination": str(record.destination.ref()),
                        "verified": [record.source.verified, record.destination.verified],
                        "identities": [record.source_identity, record.destination_identity],
                        "port": record.port,
                        "verdict": record.decision.verdict,
                        "reason": record.decision.reason,
                        "sent": record.bytes_sent,
                        "received": record.bytes_received,
                        "failed": record.failed,
                        "closed": record.closed,
                    }
                    for record in self.flows.opened_records
                ]
            case "forget":
                self.flows.opened_records.clear()
                self.flows.closed_records.clear()
            case "state":
                return {
                    "live": self.plane.live_connections,
                    "outbound": len(self.plane.outbound_tunnels),
                    "inbound": len(self.plane.inbound_tunnels),
                    "streams": sum(len(tunnel.streams) for tunnel in self.plane.outbound_tunnels),
                    "answers": sum(tunnel.answers for tunnel in self.plane.outbound_tunnels),
                    "rss": resident(),
                    "cpu": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
                    "budget": self.plane._fabric.budget.left,
                    "held": sum(one.users for names in self.names._table.values() for one in names.values()),
                    "unbound": self.plane.unbound_claims,
                    "descriptors": len(os.listdir("/proc/self/fd")),
                }
            case "drain":
                await self.plane.drain(command["deadline"])
            case "stop":
                self.plane.stop()
            case other:
                raise ValueError(other)
        return None


async def run(config: dict[str, Any]) -> None:
    process = Process(config)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    commands, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await process.plane.start()
    if process.dns is not None:
        await process.dns.start()
    print(json.dumps({"ok": None}), flush=True)
    while line := await reader.readline():
        try:
            answer = {"ok": await process.handle(json.loads(line))}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
    process.plane.stop()
    if process.dns is not None:
        await process.dns.stop()
    commands.close()
    await asyncio.sleep(0)


def main() -> None:
    config = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]  # the rest is read by asyncio
    import encodings.idna  # noqa: F401 - imported lazily by sockets, and the interpreter is out of reach later

    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    os.setgroups([])
    os.setresgid(config["uid"], config["uid"], config["uid"])
    os.setresuid(config["uid"], config["uid"], config["uid"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if config.get("uvloop", True) else None) as runner:
        runner.run(run(config))


if __name__ == "__main__":
    main()
