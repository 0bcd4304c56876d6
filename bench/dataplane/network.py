"""Beds: two network namespaces each, a client's and a server's, joined by a cable (veth) of their own.

Every bed is made the same way and has the same nginx behind it; what differs is the proxies in between. Peers share
one bed; ours have beds of their own, because their capture takes all of a namespace's connections.

Capture makes the kernel track every connection of a namespace and rewrite addresses in every packet of a captured one.
The peers' bed is captured as well, by rules of its own: what a load sends to a port of the server that belongs to a
pair is led to that pair's client end, and what arrives at another of its ports to its server end.

A second cable leads from each namespace to the switch, where the controller is; no measured byte crosses it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.launch import Program, run, until
from bench.dataplane.load import BULK_PATH, DENIED_PATH, GRPC_PATH, PATH

#: Host and port.
type Place = tuple[str, int]

CONTROLLER_ADDRESS = "10.90.0.1"
IMPOSTOR_ADDRESS = "10.90.0.2"
_SWITCH = "bench0"

#: The server's ports, one for each lane, and one that no rule allows.
STREAM_PORT = 8080
GRPC_PORT = 8081
HTTP_PORT = 8082
INSPECT_PORT = 8083
FORBIDDEN_PORT = 8084

#: Where peers listen: the clients' ends on loopback, the servers' ends on all addresses.
FRONTS, ENDS = range(20_000, 20_300), range(21_000, 21_300)
#: A captured port is so much more than that of the listener it leads to.
CAPTURED = 10_000

BODY_BYTES = 1024

#: The same in every namespace. A benchmark opens more connections a second than a minute's memory of each allows.
_KERNEL = {
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.core.somaxconn": "4096",
}
#: Where connections are tracked; a full table would drop packets.
_TRACKING = {"net.netfilter.nf_conntrack_tcp_timeout_time_wait": "5"}


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace.

    :param address: on the cable to the other end
    """

    name: str
    address: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def enter(self, *, mount: str = "", uid: int | None = None) -> list[str]:
        """The front of a command line that runs the rest here.

        :param mount: the path of a mount namespace to enter too
        """
        argv = ["nsenter", f"--net={self.path}", *([f"--mount={mount}"] if mount else [])]
        if uid is not None:
            nothing = ["--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all", "--no-new-privs"]
            argv += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", *nothing, "--"]
        return argv

    def inside[T](self, work: Callable[[], T]) -> T:
        """Call ``work`` on a thread that is in this namespace; sockets that it makes stay there."""
        results: list[T] = []
        faults: list[BaseException] = []

        def enter() -> None:
            try:
                with open(self.path, "rb") as namespace:
                    os.setns(namespace.fileno(), os.CLONE_NEWNET)
                results.append(work())
            except BaseException as fault:
                faults.append(fault)

        thread = threading.Thread(target=enter, name=f"in {self.name}")
        thread.start()
        thread.join()
        if faults:
            raise faults[0]
        return results[0]

    def connect(self, address: tuple[str, int], seconds: float = 5.0) -> socket.socket:
        """A connected TCP socket of this namespace."""
        return self.inside(lambda: socket.create_connection(address, seconds))

    def accepts(self, address: tuple[str, int]) -> bool:
        try:
            self.connect(address, 1.0).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Bed:
    """Two joined namespaces.

    :param number: 1 to 250, unique in a run
    :param captured: peers' connections are led to them by :func:`capture_rules`
    """

    number: int
    client: Namespace
    server: Namespace
    captured: bool = False

    @classmethod
    def make(cls, name: str, number: int, *, captured: bool = False) -> Bed:
        """Make both, with their cables and, if ``captured``, their rules."""
        net = f"10.91.{number}"
        ends = (Namespace(f"{name}-client", f"{net}.1"), Namespace(f"{name}-server", f"{net}.2"))
        bed = cls(number, *ends, captured)
        _ip(
            *(f"netns add {one.name}" for one in (bed.client, bed.server)),
            f"link add eth0 netns {bed.client.name} type veth peer name eth0 netns {bed.server.name}",
            *(
                f"link add bench{number}{side} type veth peer name eth1 netns {one.name}"
                for side, one in (("c", bed.client), ("s", bed.server))
            ),
            *(f"link set bench{number}{side} master {_SWITCH} up" for side in "cs"),
        )
        for last, one in ((1, bed.client), (2, bed.server)):
            _ip(
                "link set lo up",
                *(f"link set {card} addrgenmode none up" for card in ("eth0", "eth1")),
                f"addr add {one.address}/24 dev eth0",
                f"addr add 10.90.{number}.{last}/16 dev eth1",
                inside=one.name,
            )
            one.inside(lambda: _set(_KERNEL))
        # so that a check can reach the server's end past the client's
        _ip(f"route add {bed.server.address}/32 via 10.90.{number}.2")
        if captured:
            for one in (bed.client, bed.server):
                run([*one.enter(), "nft", "-f", "-"], stdin=capture_rules())
            bed.track_briefly()
        return bed

    def front(self, port: int) -> Place:
        """Where a load goes, for the client's end that listens on ``port`` of loopback."""
        return (self.server.address, port + CAPTURED) if self.captured else ("127.0.0.1", port)

    def end(self, port: int) -> Place:
        """Where a client's end goes, for the server's end that listens on ``port``."""
        return (self.server.address, port + CAPTURED if self.captured else port)

    def track_briefly(self) -> None:
        """After capture is in force: connections that ended are forgotten soon."""
        for one in (self.client, self.server):
            one.inside(lambda: _set(_TRACKING))


def capture_rules() -> str:
    """The input of ``nft -f -`` that captures what is for peers: the hooks of our own capture (``sidecar.capture``).

    One look-up for each new connection, where ours has a few rules; the rest of what capture costs is the same.
    """

    def chain(hook: str, listeners: range) -> str:
        taken = f"{listeners[0] + CAPTURED}-{listeners[-1] + CAPTURED}"
        to = ", ".join(f"{port + CAPTURED} : {port}" for port in listeners)
        kind = f"type nat hook {hook} priority -100; policy accept;"
        return f"chain {hook} {{ {kind}\ntcp dport {taken} redirect to :tcp dport map {{ {to} }}\n}}\n"

    return f"table inet bench {{\n{chain('output', FRONTS)}{chain('prerouting', ENDS)}}}\n"


def make_switch() -> None:
    """What all beds hang on, in this process' namespace, with the controller's and the impostor's addresses."""
    _ip(
        f"link add {_SWITCH} type bridge",
        f"addr add {CONTROLLER_ADDRESS}/16 dev {_SWITCH}",
        f"addr add {IMPOSTOR_ADDRESS}/16 dev {_SWITCH}",
        f"link set {_SWITCH} up",
    )


def start_nginx(bed: Bed, folder: Path, bulk_bytes: int) -> Program:
    """The server behind a bed: one worker; 1 KiB for a request, a file for a download, gRPC's shape for a call.

    The file has no blocks on a tmpfs, so that reading it costs memory traffic and no memory.
    """
    folder.mkdir()
    with (folder / "bulk").open("wb") as bulk:
        bulk.truncate(bulk_bytes)
    # one gRPC message: not compressed, its length in four bytes (PROTOCOL-HTTP2.md of gRPC)
    (folder / "reply").write_bytes(b"\0" + (BODY_BYTES - 5).to_bytes(4, "big") + b"m" * (BODY_BYTES - 5))
    method = folder / GRPC_PATH.removeprefix("/")
    method.parent.mkdir()
    method.touch()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, body="x" * BODY_BYTES, **_NAMES))
    argv = [*bed.server.enter(), "nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)]
    program = Program(f"nginx of {bed.server.name}", argv, folder / "nginx.log")
    until(lambda: bed.server.accepts(("127.0.0.1", FORBIDDEN_PORT)), f"nginx to listen in {bed.server.name}", program)
    return program


_NAMES = {
    "stream": STREAM_PORT,
    "grpc": GRPC_PORT,
    "http": HTTP_PORT,
    "inspect": INSPECT_PORT,
    "forbidden": FORBIDDEN_PORT,
    "path": PATH,
    "denied": DENIED_PATH,
    "bulk_path": BULK_PATH,
    "grpc_path": GRPC_PATH,
}

# A file takes GET alone, and a call is a POST: it is sent to the file by way of an error page. A mirror is what makes
# nginx read a body first; it would answer before, and reset the stream, which no server of gRPC does.
_NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600; tcp_nodelay on; sendfile on;
  open_file_cache max=16; default_type application/octet-stream; http2_max_concurrent_streams 4096;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 0.0.0.0:{stream} backlog=4096; listen 0.0.0.0:{http} backlog=4096; listen 0.0.0.0:{forbidden};
    listen 0.0.0.0:{inspect} http2 backlog=4096;
    location = {path} {{ return 200 "{body}"; }}
    location = {denied} {{ return 200 "{body}"; }}
    location = {bulk_path} {{ root {folder}; }}
  }}
  server {{
    listen 0.0.0.0:{grpc} http2 backlog=4096;
    location = {grpc_path} {{ root {folder}; mirror /read; error_page 405 =200 /reply; }}
    location = /read {{ internal; return 204; }}
    location = /reply {{ root {folder}; types {{ }} default_type application/grpc; add_trailer grpc-status 0 always; }}
  }}
}}
"""


def _set(values: dict[str, str]) -> None:
    for name, value in values.items():
        Path("/proc/sys", *name.split(".")).write_text(value)


def _ip(*commands: str, inside: str = "") -> None:
    run(["ip", *(["-n", inside] if inside else []), "-batch", "-"], stdin="\n".join(commands) + "\n")
