"""Stock mitmdump as the server's end, in reverse mode, with the work that our inspect lane does.

mitmproxy takes any client certificate when it asks for one, so an addon gives it a TLS context that verifies; another
hook of the same addon holds the rule. The client's end is HAProxy's, which is nowhere near its limit here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bench.dataplane import haproxy
from bench.dataplane.identity import Identities
from bench.dataplane.launch import BenchFailed, Program, until
from bench.dataplane.measures import MITMDUMP, Lane
from bench.dataplane.network import STREAM_PORT, Bed
from bench.dataplane.pairs import Pair


def pair(bed: Bed, identities: Identities, folder: Path, base: int) -> Pair:
    """The pair; ports as in :func:`bench.dataplane.haproxy.pair`."""
    binary = shutil.which("mitmdump", path=str(Path(sys.executable).parent)) or shutil.which("mitmdump")
    if binary is None:
        raise BenchFailed("mitmdump is not installed; install hedgerow[sidecar] into this environment")
    tls = (bed.server.address, 21_000 + base)
    mode = f"reverse:http://127.0.0.1:{STREAM_PORT}@{tls[0]}:{tls[1]}"
    options = ["--set", "flow_detail=0", "--set", "termlog_verbosity=error", "--set", f"confdir={folder / 'mitm'}"]
    server = Program(
        f"{MITMDUMP}-server",
        [*bed.server.enter(), binary, "--mode", mode, *options, "-s", str(Path(__file__).with_name("mitm_rules.py"))],
        folder / f"{MITMDUMP}-server.log",
        {"BENCH_CHAIN": str(identities.server.both), "BENCH_ROOTS": str(identities.roots)},
    )
    client = haproxy.client_end(f"{MITMDUMP}-client", bed, identities, folder, base, alpn="h2")
    until(lambda: bed.server.accepts(tls), "mitmdump to listen", server, seconds=60)
    return Pair(
        MITMDUMP,
        bed,
        {Lane.INSPECT: ("127.0.0.1", 20_000 + base)},
        (client,),
        (server,),
        tls=tls,
        alpn=("h2",),
        impostor=("127.0.0.1", 20_100 + base),
        denied=frozenset({Lane.INSPECT}),
    )
