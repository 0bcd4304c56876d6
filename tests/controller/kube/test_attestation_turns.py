"""What one address may have the API server asked, at once and in a row, and that others get their turns beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from certs.keys import make_csr, new_key
from controller import issuer as issuers
from controller.engine import Engine
from controller.errors import AttestationRefused, AttestationUnavailable
from controller.injection.audience import AUDIENCE
from controller.inventory import read_inventory
from controller.issuer import Issued, Issuer, Throttled
from controller.keyring import Keyring
from controller.kube.attestation import OF_AN_ADDRESS, Attestor, Patience
from controller.kube.attestation_turns import AddressTurns
from controller.kube.kinds import PODS, TOKEN_REVIEWS, Resource
from tests.controller.mesh import TRUST_DOMAIN, Clock
from tests.controller.mesh import running as running_engine

PODS_THERE = 500
FLOOD = 256
NODE, OTHER = "192.0.2.1", "192.0.2.2"
WRONG = "d3Jvbmc"
#: Refusals that an address has in a row: docs/attestation.md.
REFUSALS = 60


def inventory() -> bytes:
    instances = [
        f"  - {{name: cart-{n}, workload: shop/cart, address: 10.1.{n // 250}.{n % 250 + 1}, uid: uid-{n}}}"
        for n in range(PODS_THERE)
    ]
    return "\n".join(
        [
            "apiVersion: hedgerow.dev/v1alpha1",
            "kind: Inventory",
            "namespaces: [{name: shop, labels: {hedgerow.dev/injection: enabled}}]",
            "workloads: [{namespace: shop, name: cart, serviceAccount: cart}]",
            "instances:",
            *instances,
        ]
    ).encode()


def token(pod: object) -> str:
    """Of ``cart-<pod>``; the fake reads it from here."""
    return f"aGVhZGVy.{pod}.c2lnbmF0dXJl"


class Cluster:
    """Implements ``Requests``: each pod has one token; those whose middle part is :data:`WRONG` nobody made."""

    def __init__(self) -> None:
        self.reviews: list[str] = []
        self.busy = self.busiest = 0
        #: Set: wrong tokens are answered.
        self.answers_wrong = asyncio.Event()
        self.pods_are_known = True

    async def create(
        self, resource: Resource, body: dict[str, Any], namespace: str = "", *, dry_run: bool = False
    ) -> dict[str, Any]:
        assert resource is TOKEN_REVIEWS
        pod = body["spec"]["token"].split(".")[1]
        self.reviews.append(pod)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            if pod == WRONG:
                await self.answers_wrong.wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.busy -= 1
        if pod == WRONG or "audiences" not in body["spec"]:
            return {"status": {"error": "invalid bearer token"}}
        prefix = "authentication.kubernetes.io"
        extra = {f"{prefix}/pod-name": [f"cart-{pod}"], f"{prefix}/pod-uid": [f"uid-{pod}"]}
        user = {"username": "system:serviceaccount:shop:cart", "extra": extra}
        return {"status": {"authenticated": True, "audiences": [AUDIENCE], "user": user}}

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> dict[str, Any]:
        assert (resource, namespace) == (PODS, "shop")
        number = int(name.removeprefix("cart-"))
        address = f"10.1.{number // 250}.{number % 250 + 1}" if self.pods_are_known else "10.9.9.9"
        return {
            "metadata": {"namespace": "shop", "name": name, "uid": f"uid-{number}"},
            "spec": {"serviceAccountName": "cart", "containers": [{"name": "hedgerow-sidecar"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]},
        }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(tmp_path: Path, clock: Clock) -> AsyncIterator[Engine]:
    async with running_engine(tmp_path, clock, with_inventory=False) as made:
        await made.set_inventory(read_inventory(inventory(), TRUST_DOMAIN), "test")
        yield made


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def issuer(tmp_path: Path, engine: Engine, cluster: Cluster, clock: Clock) -> Issuer:
    keyring = Keyring.open(tmp_path / "ring", trust_domain=TRUST_DOMAIN, lifetime=3600.0, clock=clock, random=Random(1))
    attestor = Attestor(cluster, engine, "hedgerow-system", patience=Patience(whole=60, inventory=0.01))
    return Issuer(keyring, engine, 3600.0, clock, attestor=attestor)


CSR = make_csr(new_key())


async def flood(issuer: Issuer, address: str, count: int = FLOOD) -> list[BaseException | Issued]:
    asked = [issuer.attest(CSR, token(WRONG), "cart-0", address) for _ in range(count)]
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_wrong_tokens_that_come_at_once_are_refused_as_those_that_come_one_by_one(
    issuer: Issuer, cluster: Cluster, clock: Clock
) -> None:
    flooding = asyncio.ensure_future(flood(issuer, NODE))
    async with asyncio.timeout(60):
        while len(cluster.reviews) < OF_AN_ADDRESS:  # noqa: ASYNC110  # the fake has no event for it
            await asyncio.sleep(0)
    cluster.answers_wrong.set()
    found = await asyncio.wait_for(flooding, 60)
    assert cluster.busiest == OF_AN_ADDRESS
    # those that were being looked at when the last allowed one was refused are answered, and nobody else
    assert REFUSALS <= len(cluster.reviews) < REFUSALS + OF_AN_ADDRESS
    kinds = [type(each) for each in found]
    assert kinds.count(AttestationRefused) == len(cluster.reviews)
    assert kinds.count(Throttled) == FLOOD - len(cluster.reviews)

    before = len(cluster.reviews)
    await flood(issuer, NODE)
    assert len(cluster.reviews) == before
    clock.now += 10
    await flood(issuer, NODE)
    assert 0 < len(cluster.reviews) - before <= 10 + OF_AN_ADDRESS


async def test_others_have_their_turns_while_one_address_waits_for_all_of_its_own(
    issuer: Issuer, cluster: Cluster
) -> None:
    flooding = asyncio.ensure_future(flood(issuer, NODE))
    async with asyncio.timeout(60):
        while len(cluster.reviews) < OF_AN_ADDRESS:  # noqa: ASYNC110  # the fake has no event for it
            await asyncio.sleep(0)
        for pod in range(20):
            signed = await issuer.attest(CSR, token(pod), f"cart-{pod}", OTHER)
            assert signed.instance.name == f"cart-{pod}"
    assert not flooding.done()
    assert cluster.reviews.count(WRONG) == OF_AN_ADDRESS
    cluster.answers_wrong.set()
    await flooding


async def test_five_hundred_pods_behind_one_address_that_begin_at_once_all_get_theirs(
    issuer: Issuer, cluster: Cluster
) -> None:
    """None is refused, though the address has more of them than it may have refusals: it is not known yet of any."""
    async with asyncio.timeout(60):
        signed = await asyncio.gather(
            *(issuer.attest(CSR, token(pod), f"cart-{pod}", NODE) for pod in range(PODS_THERE))
        )
    assert [each.instance.name for each in signed] == [f"cart-{pod}" for pod in range(PODS_THERE)]
    assert cluster.busiest == OF_AN_ADDRESS


async def test_a_good_token_that_gets_no_certificate_is_not_looked_at_for_ever(
    issuer: Issuer, cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the inventory can not tell is no refusal, so it is not counted as one; asking the API server still is."""
    monkeypatch.setattr(issuer._looks, "_burst", 30)
    cluster.pods_are_known = False
    asked = [issuer.attest(CSR, token(1), "cart-1", NODE) for _ in range(50)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    kinds = [type(each) for each in found]
    assert (kinds.count(AttestationUnavailable), kinds.count(Throttled)) == (30, 20)
    said = next(str(each) for each in found if isinstance(each, Throttled))
    assert "too many tokens came from this address" in said
    assert len(cluster.reviews) == 2 * 30
    clock.now += 10 * issuers.LOOK_INTERVAL
    asked = [issuer.attest(CSR, token(1), "cart-1", NODE) for _ in range(50)]
    await asyncio.gather(*asked, return_exceptions=True)
    assert len(cluster.reviews) == 2 * (30 + 10)
    cluster.pods_are_known = True
    assert (await issuer.attest(CSR, token(1), "cart-1", OTHER)).instance.name == "cart-1", "another is not concerned"


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    turns = AddressTurns(1, 1)

    async def wait(address: str) -> None:
        async with turns.of(address):
            raise AssertionError("it is not its turn")

    async with turns.of(NODE):
        waiting = [asyncio.ensure_future(wait(address)) for address in (NODE, NODE, OTHER)]
        await asyncio.sleep(0)
        assert len(turns) == 2
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert len(turns) == 1
    assert len(turns) == 0
    await asyncio.wait_for(turns.of(OTHER).__aenter__(), 10)
