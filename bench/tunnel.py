"""What the data path costs: requests per second through two sidecars, side by side with none.

    sudo python -m bench.tunnel [--rounds N] [--seconds S]

Makes network namespaces, starts nginx and two data planes (mutual TLS, policy enforced, flows recorded) and runs wrk
against both paths in turn, so that a busy machine slows both. Prints one JSON object: medians and their ratio. Needs
root, nginx and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.dataplane.launch import BenchFailed, until
from certs.ca import CertificateAuthority
from tests.sidecar.dataplane.mesh import Network, Sidecar, meshed
from tests.sidecar.dataplane.netns import Pod
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN

PORT = 8080
CONNECTIONS = (1, 8, 32)
_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen {address}:{port} backlog=4096;
    location / {{ return 200 "hedgerow\\n"; }}
    location /bulk {{ root {folder}; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(pod: Pod, folder: Path) -> Iterator[None]:
    """The application of ``pod``: one short answer, and a quarter of a gigabyte at ``/bulk``."""
    folder.mkdir()
    with (folder / "bulk").open("wb") as bulk:
        bulk.truncate(256 << 20)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, address=pod.address, port=PORT))
    process = subprocess.Popen(
        ["ip", "netns", "exec", pod.namespace.name, "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    )
    try:
        until(lambda: listens(pod), f"nginx to listen at {pod.address}")
        yield
    finally:
        process.terminate()
        process.wait(10)


def listens(pod: Pod) -> bool:
    """Whether the application takes connections."""
    with pod.namespace.socket() as probe:
        return probe.connect_ex((pod.address, PORT)) == 0


def requests(pod: Pod, address: str, connections: int, seconds: int) -> tuple[float, float]:
    """Requests per second and the 99th percentile in milliseconds."""
    text = subprocess.run(
        [
            *("ip", "netns", "exec", pod.namespace.name),
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"http://{address}:{PORT}/"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    ).stdout
    if "Socket errors" in text or "Non-2xx" in text:
        raise SystemExit(f"requests failed:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", text)
    if rate is None or tail is None:
        raise SystemExit(f"wrk said something unexpected:\n{text}")
    return float(rate[1]), float(tail[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[tail[2]]


def bulk(pod: Pod, address: str) -> float:
    """Megabytes per second of one download."""
    text = subprocess.run(
        [
            *("ip", "netns", "exec", pod.namespace.name, "curl", "-s", "-o", "/dev/null"),
            *("-w", "%{speed_download}", "--max-time", "30", f"http://{address}:{PORT}/bulk"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=40,
    ).stdout
    return float(text) / 1e6


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """Make both paths, measure them in turn, and take everything down.

    :param seconds: of one measurement
    :returns: what is printed
    :raises BenchFailed: when nginx does not begin to listen
    """
    network = Network()
    with contextlib.ExitStack() as stack:
        stack.callback(network.remove)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hedgerow-bench-")))
        front, cart, plain_front, plain_cart = (network.pod() for _ in range(4))
        authority = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        policy = {"rules": [{"from": "shop/front", "to": "shop/cart", "port": PORT}], "tls": "strict"}
        paths = {"direct": (plain_front, plain_cart.address), "hedgerow": (front, cart.address)}
        stack.enter_context(nginx(cart, folder / "cart"))
        stack.enter_context(nginx(plain_cart, folder / "plain"))
        sides = []
        for pod, workload in ((front, "shop/front"), (cart, "shop/cart")):
            sidecar = Sidecar(
                pod,
                workload,
                authority,
                policy=policy,
                directory=[meshed("shop/cart", [cart], PORT)],
                log=folder / f"{pod.address}.log",
            )
            stack.callback(sidecar.end)
            sides.append(sidecar)
        for pod, address in paths.values():
            requests(pod, address, 8, 1)  # warm: tunnels, caches
        rates: dict[tuple[str, int], list[float]] = {}
        tails: dict[tuple[str, int], list[float]] = {}
        bulks: dict[str, list[float]] = {}
        cost: list[float] = []
        for number in range(rounds):
            order = list(paths.items())
            for connections in CONNECTIONS:
                for name, (pod, address) in order if number % 2 else reversed(order):
                    before = sum(side.state()["cpu"] for side in sides)
                    rate, tail = requests(pod, address, connections, seconds)
                    after = sum(side.state()["cpu"] for side in sides)
                    rates.setdefault((name, connections), []).append(rate)
                    tails.setdefault((name, connections), []).append(tail)
                    if name == "hedgerow" and connections == max(CONNECTIONS):
                        cost.append((after - before) / (rate * seconds) / 2 * 1e6)
            for name, (pod, address) in order:
                bulks.setdefault(name, []).append(bulk(pod, address))
        return {
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "rounds": rounds,
            "connections": {
                str(connections): {
                    **{
                        f"{name}_requests_per_second": round(statistics.median(rates[name, connections]))
                        for name in paths
                    },
                    **{f"{name}_p99_ms": round(statistics.median(tails[name, connections]), 3) for name in paths},
                    "ratio": round(
                        statistics.median(
                            ours / direct
                            for ours, direct in zip(
                                rates["hedgerow", connections], rates["direct", connections], strict=True
                            )
                        ),
                        3,
                    ),
                }
                for connections in CONNECTIONS
            },
            "bulk_mb_per_second": {name: round(statistics.median(values)) for name, values in bulks.items()},
            "cpu_microseconds_per_request_and_side": round(statistics.median(cost), 1),
            "rss_mb": [round(side.state()["rss"] / 1e6, 1) for side in sides],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1, help="per measurement")
    arguments = parser.parse_args()
    missing = [name for name in ("ip", "nft", "nginx", "wrk", "curl") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        raise SystemExit(f"this benchmark needs root and {', '.join(missing) or 'nothing else'}")
    try:
        print(json.dumps(run(arguments.rounds, arguments.seconds), indent=2))
    except BenchFailed as failure:
        raise SystemExit(str(failure)) from None


if __name__ == "__main__":
    main()
