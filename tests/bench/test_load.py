"""What wrk, h2load and curl say is read to the letter, and nothing that failed passes for a figure."""

from __future__ import annotations

import pytest

from bench.dataplane.load import LoadFailed, command, read, read_curl, read_h2load, read_wrk
from bench.dataplane.measures import LOADS, Lane, Load, Tool

WRK = """Running 1s test @ http://10.91.2.2:8080/api
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.21ms  410.12us   7.90ms   82.51%
    Req/Sec    26.60k     1.12k   28.01k    70.00%
  Latency Distribution
     50%  910.00us
     75%    1.42ms
     90%    1.70ms
     99%    1.02s
  27394 requests in 1.10s, 32.10MB read
Requests/sec:  24903.21
Transfer/sec:     29.18MB
"""

H2LOAD = """starting benchmark...
finished in 1.00s, 26670.00 req/s, 28.90MB/s
requests: 26670 total, 26702 started, 26670 done, 26670 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 26670 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 28.90MB (30302144) total, 1.20MB (1258291) headers (space savings 90.00%), 26.04MB (27310080) data
"""


def test_wrk_figures() -> None:
    assert read_wrk(WRK) == {"rps": 24903.21, "requests": 27394.0, "p50": pytest.approx(0.91), "p99": 1020.0}


@pytest.mark.parametrize(
    "line",
    [
        "  Socket errors: connect 0, read 1, write 0, timeout 0",
        "  Non-2xx or 3xx responses: 1",
    ],
)
def test_a_failure_that_wrk_saw_fails_the_slice(line: str) -> None:
    with pytest.raises(LoadFailed, match="saw failures"):
        read_wrk(WRK.replace("Requests/sec", f"{line}\nRequests/sec"))


@pytest.mark.parametrize("missing", ["Requests/sec", "requests in", "50%", "99%"])
def test_wrk_that_leaves_something_out_is_refused(missing: str) -> None:
    text = "\n".join(line for line in WRK.splitlines() if missing not in line)
    with pytest.raises(LoadFailed, match="did not say"):
        read_wrk(text)


def test_wrk_that_did_nothing_is_refused() -> None:
    with pytest.raises(LoadFailed):
        read_wrk(WRK.replace("27394 requests", "0 requests"))


def test_h2load_figures() -> None:
    assert read_h2load(H2LOAD) == {"rps": 26670.0, "requests": 26670.0}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("0 failed", "3 failed"),
        ("0 errored", "1 errored"),
        ("0 timeout", "1 timeout"),
        ("0 4xx", "7 4xx"),
        ("0 5xx", "1 5xx"),
        ("0 3xx", "1 3xx"),
        ("26670 done", "0 done"),
    ],
)
def test_a_failure_that_h2load_saw_fails_the_slice(good: str, bad: str) -> None:
    assert good in H2LOAD
    with pytest.raises(LoadFailed, match="saw failures"):
        read_h2load(H2LOAD.replace(good, bad))


@pytest.mark.parametrize("missing", ["finished in", "requests:", "status codes:"])
def test_h2load_that_leaves_something_out_is_refused(missing: str) -> None:
    text = "\n".join(line for line in H2LOAD.splitlines() if not line.startswith(missing))
    with pytest.raises(LoadFailed, match="did not say"):
        read_h2load(text)


def test_a_download_counts_when_all_of_it_came() -> None:
    assert read_curl("200 1048576 331500000", 1048576) == {"bytes": 331500000.0, "requests": 1.0}


@pytest.mark.parametrize("said", ["200 1048575 331500000", "403 1048576 331500000", "000 0 0", ""])
def test_a_download_that_broke_off_fails_the_slice(said: str) -> None:
    with pytest.raises(LoadFailed):
        read_curl(said, 1048576)


@pytest.mark.parametrize("load", LOADS.values(), ids=lambda load: load.name)
def test_every_load_has_a_command_of_its_tool(load: Load) -> None:
    argv = command(load, "10.91.2.2", 8080, 1.0, "/run/message")
    assert argv[0] == load.tool
    assert argv[-1].startswith("http://10.91.2.2:8080/")
    if load.tool is not Tool.CURL:
        assert f"-c{load.connections}" in argv
    assert ("Connection: close" in argv) is load.close
    assert ("/run/message" in argv) is (load.lane is Lane.GRPC)


def test_reading_goes_by_the_tool() -> None:
    assert read(LOADS["stream-32"], WRK)["requests"] == 27394
    assert read(LOADS["grpc"], H2LOAD)["requests"] == 26670
    assert read(LOADS["bulk"], "200 7 9.5", bulk_bytes=7)["bytes"] == 9.5
