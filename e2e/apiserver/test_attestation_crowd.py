"""Very many tokens from one address, at a real API server: pods that begin together behind a node, and who floods.

All of them come from this machine's loopback, which is to a controller what the address of a node is that stands before
its pods. The client is gRPC's blocking one: the other reports a fault of its own for some calls that are refused early.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from certs.keys import make_csr, new_key
from controller.kube.attestation import OF_AN_ADDRESS
from e2e.apiserver.proving import Cluster
from e2e.harness.apiserver import ApiServer
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.running import CHANNEL, Running, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

PODS = 500
FLOOD = 256
#: Refusals that an address has in a row, and those that come back meanwhile, one a second: docs/attestation.md.
REFUSALS = 60
#: Calls that a connection may have at once.
A_CONNECTION = 4
LATER = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
CSR = make_csr(new_key())

type Shown = tuple[str, str]
"""A token, and the pod that shows it."""


def _all_at_once(run: Running, shown: Sequence[Shown]) -> list[pb.SignResponse | grpc.RpcError]:
    """Show all of them in the same moment. Blocks."""
    credentials = grpc.ssl_channel_credentials(run.bundle.to_pem().encode())
    with ExitStack() as open_channels:
        calls = []
        for first in range(0, len(shown), A_CONNECTION):
            channel = grpc.secure_channel(str(run.controller.issuer_server.bound), credentials, CHANNEL)
            stub = rpc.IssuerStub(open_channels.enter_context(channel))
            for token, pod in shown[first : first + A_CONNECTION]:
                request = pb.SignRequest(csr_der=CSR, service_account_token=token, instance=pod)
                calls.append(stub.Sign.future(request, timeout=120, wait_for_ready=True))
        return [_end_of(call) for call in calls]


def _end_of(call: grpc.Future) -> pb.SignResponse | grpc.RpcError:
    try:
        return call.result()
    except grpc.RpcError as error:
        return error


def _reviews(api: ApiServer) -> int:
    """TokenReviews that the API server was asked for, by anybody."""
    lines = re.findall(r'^apiserver_request_total\{[^}]*resource="tokenreviews"[^}]*\} (\d+)', _metrics(api), re.M)
    return sum(map(int, lines))


def _metrics(api: ApiServer) -> str:
    return api.kubectl("get", "--raw", "/metrics")


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


async def test_five_hundred_pods_behind_one_address_that_begin_at_once_all_get_theirs(
    run: Running, cluster: Cluster, workers: ThreadPoolExecutor
) -> None:
    names = [f"cart-{number}" for number in range(PODS)]

    def begin(name: str) -> Shown:
        cluster.pod(name)
        return cluster.token(name), name

    loop = asyncio.get_running_loop()
    left = list(await asyncio.gather(*(loop.run_in_executor(workers, begin, name) for name in names)))
    signed: list[str] = []
    deadline = time.monotonic() + 300
    while left:  # as a sidecar does that is told to come again
        assert time.monotonic() < deadline, f"{len(left)} pods have no certificate"
        found = await asyncio.to_thread(_all_at_once, run, left)
        again = []
        for each, (shown, answer) in enumerate(zip(left, found, strict=True)):
            if isinstance(answer, grpc.RpcError):
                assert answer.code() in LATER, f"{each}: {answer.code()}: {answer.details()}"
                again.append(shown)
            else:
                signed.append(answer.instance)
        left = again
    assert sorted(signed) == sorted(names)


async def test_who_floods_from_one_address_has_few_tokens_looked_at(run: Running, cluster: Cluster) -> None:
    """Last: this address is not let in again for a while."""
    cluster.pod("cart-1")
    token = cluster.token("cart-1")
    wrong = f"{token.rpartition('.')[0]}.{'A' * 342}"  # everything is right but the signature
    before, began = await asyncio.to_thread(_reviews, cluster.api), time.monotonic()
    found = await asyncio.to_thread(_all_at_once, run, [(wrong, "cart-1")] * FLOOD)
    codes = Counter(each.code() if isinstance(each, grpc.RpcError) else "signed" for each in found)
    refused = codes[grpc.StatusCode.PERMISSION_DENIED]
    assert codes == {
        grpc.StatusCode.PERMISSION_DENIED: refused,
        grpc.StatusCode.RESOURCE_EXHAUSTED: FLOOD - refused,
    }
    most = REFUSALS + OF_AN_ADDRESS + time.monotonic() - began
    assert REFUSALS <= refused <= most
    seen = await eventually(lambda: _reviews(cluster.api) - before)
    assert refused <= seen <= most, "each token that was refused was asked about once, and no other"
