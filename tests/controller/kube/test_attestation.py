"""Which pod shows a token: every rule broken once, and what can not be found out told apart from what is refused.

Over 400 lines: each rule is broken in one cluster that keeps all of them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.engine import Engine
from controller.errors import AttestationRefused, AttestationUnavailable
from controller.injection.audience import AUDIENCE
from controller.inventory import read_inventory
from controller.kube.attestation import AT_ONCE, Attestor, Patience
from controller.kube.errors import Forbidden, KubernetesError, NoSuchObject, Unauthorized, Unreachable
from controller.kube.kinds import PODS, TOKEN_REVIEWS, Resource
from controller.kube.token_review import bound_pod
from graph.model import WorkloadRef
from tests.controller.mesh import TRUST_DOMAIN, Clock
from tests.controller.mesh import running as running_engine

TOKEN = "aGVhZGVy.cGF5bG9hZA.c2lnbmF0dXJl"
ADDRESS = "10.0.0.2"
#: What the inventory says of the pod.
CART_1 = "address: 10.0.0.2, uid: uid-1"

INVENTORY = """
apiVersion: hedgerow.dev/v1alpha1
kind: Inventory
namespaces:
  - {name: shop, labels: {hedgerow.dev/injection: enabled}}
  - {name: plain}
workloads:
  - {namespace: shop, name: cart, serviceAccount: cart}
  - {namespace: shop, name: legacy, serviceAccount: cart, meshed: false}
  - {namespace: plain, name: cart, serviceAccount: cart}
instances:
  - {name: cart-1, workload: shop/cart, address: 10.0.0.2, uid: uid-1}
  - {name: cart-2, workload: shop/cart, address: 10.0.0.3}
  - {name: legacy-1, workload: shop/legacy, address: 10.0.0.4}
  - {name: cart-1, workload: plain/cart, address: 10.0.0.5}
"""

POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
REVIEWED: dict[str, Any] = {
    "authenticated": True,
    "audiences": [AUDIENCE],
    "user": {
        "username": "system:serviceaccount:shop:cart",
        "uid": "account-uid",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=1"],
            "authentication.kubernetes.io/node-name": ["node-1"],
            POD_NAME: ["cart-1"],
            POD_UID: ["uid-1"],
        },
    },
}
POD: dict[str, Any] = {
    "metadata": {"namespace": "shop", "name": "cart-1", "uid": "uid-1"},
    "spec": {
        "serviceAccountName": "cart",
        "containers": [{"name": "app"}],
        "initContainers": [{"name": "hedgerow-capture"}, {"name": "hedgerow-sidecar"}],
    },
    "status": {"phase": "Pending", "podIPs": [{"ip": ADDRESS}]},
}


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one thing set, or, with None, taken out."""
    made = copy.deepcopy(document)
    *way, last = path.split("/")
    at = made
    for step in way:
        at = at[step]
    if value is None:
        at.pop(last, None)
    else:
        at[last] = value
    return made


def without_extra(*names: str) -> dict[str, Any]:
    made = copy.deepcopy(REVIEWED)
    for name in names:
        del made["user"]["extra"][f"authentication.kubernetes.io/{name}"]
    return made


class Cluster:
    """Implements ``Requests``: an API server that knows one token and one pod."""

    def __init__(self) -> None:
        self.review: dict[str, Any] | KubernetesError = copy.deepcopy(REVIEWED)
        #: What it says of the token when it is asked whether that is for the API server itself.
        self.own: dict[str, Any] | KubernetesError = {"error": "invalid audience"}
        self.pod: dict[str, Any] | KubernetesError = copy.deepcopy(POD)
        self.asked: list[dict[str, Any]] = []
        self.busy = 0
        self.busiest = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def create(
        self, resource: Resource, body: dict[str, Any], namespace: str = "", *, dry_run: bool = False
    ) -> dict[str, Any]:
        assert resource is TOKEN_REVIEWS
        assert not namespace
        self.asked.append(body)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await self.answering.wait()
        finally:
            self.busy -= 1
        said = self.review if "audiences" in body["spec"] else self.own
        if isinstance(said, KubernetesError):
            raise said
        return {**body, "status": said}

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> dict[str, Any]:
        assert (resource, namespace, name, subresource) == (PODS, "shop", "cart-1", "")
        if isinstance(self.pod, KubernetesError):
            raise self.pod
        return self.pod


def gladly() -> None:
    """Nobody is kept waiting."""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with running_engine(tmp_path, Clock(), with_inventory=False) as made:
        await made.set_inventory(read_inventory(INVENTORY.encode(), TRUST_DOMAIN), "test")
        yield made


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def attestor(cluster: Cluster, engine: Engine) -> Attestor:
    return Attestor(cluster, engine, "hedgerow-system", patience=Patience(whole=20, inventory=0.05))


async def test_a_pod_s_own_token_says_which_instance_shows_it(cluster: Cluster, attestor: Attestor) -> None:
    attested = await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert (attested.instance.name, attested.instance.workload) == ("cart-1", WorkloadRef("shop", "cart"))
    assert attested.uid == "uid-1"
    assert attested.evidence == {
        "pod_uid": "uid-1",
        "account": "cart",
        "credential": "JTI=1",
        "node": "node-1",
        "from": ADDRESS,
    }
    assert [each["spec"] for each in cluster.asked] == [
        {"token": TOKEN, "audiences": ["hedgerow-controller"]},
        {"token": TOKEN},
    ]
    assert TOKEN not in str(attested)


async def test_older_servers_say_neither_node_nor_credential(cluster: Cluster, attestor: Attestor) -> None:
    cluster.review = without_extra("node-name", "credential-id")
    assert (await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)).uid == "uid-1"


@pytest.mark.parametrize("address", ["10.0.0.2", "::ffff:10.0.0.2", "192.0.2.1", "unix:", "10.0.0.77"])
async def test_an_address_that_is_nobody_s_proves_nothing(attestor: Attestor, address: str) -> None:
    assert (await attestor.attest(TOKEN, "cart-1", address, gladly)).instance.name == "cart-1"


REFUSED = [
    ({"authenticated": False}, "attestation-invalid", "does not accept it"),
    ({}, "attestation-invalid", "does not accept it"),
    ({"authenticated": "true"}, "attestation-invalid", "does not accept it"),
    (
        {"error": "[invalid bearer token, service account token has expired]"},
        "attestation-expired",
        "check the clocks",
    ),
    (
        {"error": '[invalid bearer token, token audiences ["x"] is invalid for the target audiences ["y"]]'},
        "attestation-wrong-audience",
        "audience: hedgerow-controller",
    ),
    ({"error": "[invalid bearer token, service account token has been invalidated]"}, "attestation-pod-gone", ""),
    ({"error": "x" * 9999 + "\n"}, "attestation-invalid", "xxx"),
    (changed(REVIEWED, "user/username", "anna"), "attestation-invalid", "no ServiceAccount's token"),
    (changed(REVIEWED, "user/username", "system:serviceaccount:shop"), "attestation-invalid", "no ServiceAccount's"),
    (changed(REVIEWED, "user/username", "system:serviceaccount:a:b:c"), "attestation-invalid", "no ServiceAccount's"),
    (changed(REVIEWED, "user/username", None), "attestation-invalid", "no ServiceAccount's"),
    (without_extra("pod-name", "pod-uid"), "attestation-unbound", "bound to node 'node-1'"),
    (without_extra("pod-name", "pod-uid", "node-name"), "attestation-unbound", "bound to no pod"),
    (without_extra("pod-uid"), "attestation-unbound", "a projected token of the pod"),
    (changed(REVIEWED, "user/extra", None), "attestation-unbound", "bound to no pod"),
    (
        changed(REVIEWED, "user/extra", {POD_NAME: ["cart-1", "cart-2"], POD_UID: ["uid-1"]}),
        "attestation-unbound",
        "bound to no pod",
    ),
]


@pytest.mark.parametrize(("status", "code", "says"), REFUSED)
async def test_a_token_that_is_not_good_for_us_is_refused(
    cluster: Cluster, attestor: Attestor, status: dict[str, Any], code: str, says: str
) -> None:
    cluster.review = status
    with pytest.raises(AttestationRefused) as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert refused.value.code == code
    assert says in str(refused.value)
    assert refused.value.field == "service_account_token"
    assert refused.value.remedy
    assert len(str(refused.value)) < 700
    assert str(refused.value).isprintable()
    assert refused.value.pod == "", "nothing was proved"


@pytest.mark.parametrize("audiences", [None, [], ["https://kubernetes.default.svc"], "hedgerow-controller"])
async def test_an_api_server_that_does_not_check_audiences_proves_nothing(
    cluster: Cluster, attestor: Attestor, audiences: object
) -> None:
    cluster.review = changed(REVIEWED, "audiences", audiences)
    with pytest.raises(AttestationUnavailable, match="does not check for whom a token is"):
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)


async def test_tokens_are_for_whom_the_settings_say(cluster: Cluster, engine: Engine) -> None:
    attestor = Attestor(cluster, engine, "hedgerow-system", audience="mesh.example", patience=Patience(whole=20))
    with pytest.raises(AttestationUnavailable, match="does not check for whom a token is"):
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)  # good for another than was asked for
    cluster.review = {"error": 'token audiences ["hedgerow-controller"] is invalid for the target audiences'}
    with pytest.raises(AttestationRefused, match=r"`audience: mesh\.example`") as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert refused.value.code == "attestation-wrong-audience"
    assert "`token_audience`" in refused.value.remedy
    cluster.review = changed(REVIEWED, "audiences", ["mesh.example"])
    assert (await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)).uid == "uid-1"
    assert [each["spec"].get("audiences") for each in cluster.asked] == [["mesh.example"]] * 3 + [None]


async def test_a_token_that_is_for_the_api_server_too_proves_nothing(cluster: Cluster, attestor: Attestor) -> None:
    """Every container of every pod has one of those."""
    cluster.own = changed(REVIEWED, "audiences", ["https://kubernetes.default.svc"])
    with pytest.raises(AttestationRefused, match="for the API server too") as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert (refused.value.code, refused.value.pod) == ("attestation-not-ours-alone", "shop/cart-1")
    assert "`token_audience`" in refused.value.remedy


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("metadata/uid", "uid-2", "attestation-pod-gone"),
        ("metadata/deletionTimestamp", "2026-01-01T00:00:00Z", "attestation-pod-ending"),
        ("spec/serviceAccountName", "default", "attestation-account"),
        ("status/phase", "Succeeded", "attestation-pod-ended"),
        ("status/phase", "Failed", "attestation-pod-ended"),
        ("status/phase", None, "attestation-pod-ended"),
        ("spec/hostNetwork", True, "attestation-host-network"),
        ("spec/initContainers", None, "attestation-not-injected"),
        ("spec/initContainers", [{"name": "hedgerow-sidecar-2"}, 7], "attestation-not-injected"),
        ("spec", None, "attestation-account"),
        ("metadata", None, "attestation-pod-gone"),
    ],
)
async def test_a_pod_that_may_have_no_certificate_is_refused(
    cluster: Cluster, attestor: Attestor, path: str, value: object, code: str
) -> None:
    cluster.pod = changed(POD, path, value)
    with pytest.raises(AttestationRefused) as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert (refused.value.code, refused.value.pod) == (code, "shop/cart-1")
    assert refused.value.remedy


async def test_a_pod_that_is_gone_is_refused(cluster: Cluster, attestor: Attestor) -> None:
    cluster.pod = NoSuchObject("get pods cart-1 in shop: not found", status=404)
    with pytest.raises(AttestationRefused) as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert refused.value.code == "attestation-pod-gone"


async def test_an_ordinary_container_is_a_sidecar_too(cluster: Cluster, attestor: Attestor) -> None:
    cluster.pod = changed(changed(POD, "spec/initContainers", None), "spec/containers", [{"name": "hedgerow-sidecar"}])
    assert (await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)).instance.name == "cart-1"


@pytest.mark.parametrize("claimed", ["cart-2", "", "cart-1 ", "x" * 500, "\x00"])
async def test_who_takes_itself_for_another_pod_is_refused(attestor: Attestor, claimed: str) -> None:
    with pytest.raises(AttestationRefused) as refused:
        await attestor.attest(TOKEN, claimed, ADDRESS, gladly)
    assert refused.value.code == "attestation-another-pod"
    assert "$(POD_NAME)" in refused.value.remedy
    assert str(refused.value).isprintable()


async def test_a_call_from_another_pod_s_address_gives_a_taken_token_away(cluster: Cluster, attestor: Attestor) -> None:
    for address in ("10.0.0.3", "::ffff:10.0.0.3", "10.0.0.4"):
        with pytest.raises(AttestationRefused, match="the call comes from pod shop/") as refused:
            await attestor.attest(TOKEN, "cart-1", address, gladly)
        assert refused.value.code == "attestation-another-pod"
    # while the inventory still has an address at the pod that had it before, the pod itself is the better witness
    cluster.pod = changed(POD, "status/podIPs", [{"ip": "10.0.0.3"}, {"ip": ADDRESS}])
    assert (await attestor.attest(TOKEN, "cart-1", "10.0.0.3", gladly)).instance.name == "cart-1"


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        ("plain", "`kubectl label namespace plain hedgerow.dev/injection=enabled`"),
        ("kube-system", "never meshed"),
        ("hedgerow-system", "never meshed"),
    ],
)
async def test_pods_of_other_namespaces_are_refused(
    cluster: Cluster, attestor: Attestor, monkeypatch: pytest.MonkeyPatch, namespace: str, says: str
) -> None:
    cluster.review = changed(REVIEWED, "user/username", f"system:serviceaccount:{namespace}:cart")

    async def get(resource: Resource, name: str, at: str = "", subresource: str = "") -> dict[str, Any]:
        assert (at, name) == (namespace, "cart-1")
        return changed(POD, "metadata/namespace", namespace)

    monkeypatch.setattr(cluster, "get", get)
    with pytest.raises(AttestationRefused, match="namespace") as refused:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert refused.value.code == "attestation-namespace"
    assert says in str(refused.value)


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.c.d", "a.b.c\n", "a. b.c", "é.b.c", "a.b." + "c" * 17_000])
async def test_what_is_no_token_does_not_reach_the_api_server(cluster: Cluster, attestor: Attestor, token: str) -> None:
    with pytest.raises(AttestationRefused) as refused:
        await attestor.attest(token, "cart-1", ADDRESS, gladly)
    assert refused.value.code == "attestation-invalid"
    assert cluster.asked == []


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("create tokenreviews: no answer", status=503),
        Forbidden("create tokenreviews: no", status=403, remedy="add {create tokenreviews}"),
        Unauthorized("who are you", status=401),
    ],
)
@pytest.mark.parametrize("asked", ["review", "own", "pod"])
async def test_what_can_not_be_found_out_is_no_refusal_and_the_log_says_what_to_do(
    cluster: Cluster, attestor: Attestor, caplog: pytest.LogCaptureFixture, error: KubernetesError, asked: str
) -> None:
    setattr(cluster, asked, error)
    with pytest.raises(AttestationUnavailable, match=error.code) as unavailable:
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)
    assert "tried again by itself" in unavailable.value.remedy
    assert str(error) in caplog.text
    assert str(error) not in str(unavailable.value), "what is wrong with the controller is not the caller's to know"
    assert TOKEN not in caplog.text


# --- the inventory


async def test_a_pod_that_the_inventory_does_not_have_yet_is_waited_for(cluster: Cluster, engine: Engine) -> None:
    attestor = Attestor(cluster, engine, "hedgerow-system", patience=Patience(whole=20, inventory=20))
    without = "\n".join(line for line in INVENTORY.splitlines() if "10.0.0.2, uid: uid-1}" not in line)
    await engine.set_inventory(read_inventory(without.encode(), TRUST_DOMAIN), "test")
    attesting = asyncio.ensure_future(attestor.attest(TOKEN, "cart-1", ADDRESS, gladly))
    while not cluster.asked:  # noqa: ASYNC110  # the fake has no event for it
        await asyncio.sleep(0)
    assert not attesting.done()
    await engine.set_inventory(read_inventory(INVENTORY.encode(), TRUST_DOMAIN), "test")
    assert (await asyncio.wait_for(attesting, 20)).instance.name == "cart-1"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            f"  - {{name: cart-1, workload: shop/cart, {CART_1}}}\n",
            "",
            "does not have pod shop/cart-1 yet",
        ),
        ("address: 10.0.0.2, uid: uid-1}", "address: 10.0.0.22, uid: uid-1}", "an earlier pod shop/cart-1"),
        ("uid: uid-1}", "uid: uid-0}", "an earlier pod shop/cart-1"),
        ("name: cart, serviceAccount: cart}", "name: cart, serviceAccount: other}", "under another ServiceAccount"),
        (CART_1, CART_1 + ", meshed: false", "without our sidecar"),
        (
            "address: 10.0.0.2, uid: uid-1}",
            "address: 10.0.0.2, uid: uid-1, serviceAccount: other}",
            "under another ServiceAccount",
        ),
        ("cart-1, workload: shop/cart,", "cart-1, workload: shop/legacy,", "without our sidecar"),
    ],
)
async def test_what_the_inventory_does_not_know_gets_nothing_and_is_told_to_come_again(
    engine: Engine, attestor: Attestor, before: str, after: str, says: str
) -> None:
    assert before in INVENTORY
    await engine.set_inventory(read_inventory(INVENTORY.replace(before, after).encode(), TRUST_DOMAIN), "test")
    with pytest.raises(AttestationUnavailable, match=says) as unavailable:
        await attestor.attest(TOKEN, "cart-1", "192.0.2.1", gladly)
    assert unavailable.value.code == "attestation-not-yet"


async def test_a_controller_that_has_no_inventory_yet_refuses_nobody(engine: Engine, attestor: Attestor) -> None:
    nothing = b"{apiVersion: hedgerow.dev/v1alpha1, kind: Inventory}"
    await engine.set_inventory(read_inventory(nothing, TRUST_DOMAIN), "test")
    with pytest.raises(AttestationUnavailable, match="does not have namespace shop yet"):
        await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)


async def test_reviews_are_bounded_and_late_ones_are_told_to_come_again(cluster: Cluster, engine: Engine) -> None:
    attestor = Attestor(cluster, engine, "hedgerow-system", patience=Patience(whole=0.3, inventory=0.1))
    cluster.answering.clear()
    found = await asyncio.gather(
        *(
            attestor.attest(TOKEN, "cart-1", f"192.0.2.{number % 3}", gladly)  # three: two would just fill the turns
            for number in range(6 * AT_ONCE)
        ),
        return_exceptions=True,
    )
    assert {type(each) for each in found} == {AttestationUnavailable}
    assert cluster.busiest == AT_ONCE
    assert len(attestor._turns) == 0, "nobody is remembered who has left"
    cluster.answering.set()
    assert (await attestor.attest(TOKEN, "cart-1", ADDRESS, gladly)).uid == "uid-1"


def test_what_a_review_says_is_read_without_believing_its_form() -> None:
    for user in (None, [], "x", {"username": 7}, {"username": "system:serviceaccount:shop:cart", "extra": []}):
        with pytest.raises(AttestationRefused):
            bound_pod({**REVIEWED, "user": user}, AUDIENCE)
