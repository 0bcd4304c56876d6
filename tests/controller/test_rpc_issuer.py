"""First certificates against join tokens, renewals against certificates, and everybody who gets neither."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.ca import CertificateAuthority
from certs.keys import key_to_pem, make_csr, new_key, public_bytes
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from certs.verify import verify_peer
from controller.errors import JoinTokenError
from controller.rpc import services
from controller.rpc.server import ATTESTING_CALLS
from controller.signings import RENEWALS
from graph.model import WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.mesh import CART, FRONT, INVENTORY, TRUST_DOMAIN
from tests.controller.running import Identity, Running, eventually, running, spiffe


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_join_token_gives_the_identity_of_its_workload_and_the_certificate_names_the_instance(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        token = await run.join_token("shop/cart", "cart-1")
        key = new_key()
        answer = await rpc.IssuerStub(run.attesting()).Sign(pb.SignRequest(csr_der=make_csr(key), join_token=token))

        leaf, *others = answer.chain_der
        assert verify_peer(leaf, others, run.bundle, time.time()) == spiffe(CART)
        assert (answer.spiffe_id, answer.workload, answer.instance) == (str(spiffe(CART)), "shop/cart", "cart-1")
        assert instance_of(leaf) == "cart-1"
        signed_key = x509.load_der_x509_certificate(leaf).public_key()
        assert signed_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public_bytes(
            key.public_key()
        )
        assert tuple(answer.bundle.roots_der) == run.bundle.roots_der

        audit = await run.get("/audit")
        entry = next(each for each in audit["entries"] if each["action"] == "certificate.join")
        assert entry["actor"] == "sidecar:shop/cart-1"
        assert entry["detail"]["spiffe_id"] == str(spiffe(CART))
        assert audit["intact"] is True
        assert token not in str(audit)


async def test_a_token_is_spent_by_use_and_not_by_a_request_that_can_not_be_signed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        token = await run.join_token()
        issuer = rpc.IssuerStub(run.attesting())
        code, message = await refused(issuer.Sign(pb.SignRequest(csr_der=b"not a request", join_token=token)))
        assert (code, message.startswith("csr: ")) == (grpc.StatusCode.INVALID_ARGUMENT, True)

        request = pb.SignRequest(csr_der=make_csr(new_key()), join_token=token)
        assert (await issuer.Sign(request)).instance == "front-0"

        code, message = await refused(issuer.Sign(request))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "used before" in message


async def test_wrong_and_expired_tokens_are_told_apart_and_never_repeated(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        issuer = rpc.IssuerStub(run.attesting())
        wrong = "hedgerow-join.0123456789abcdef." + "A" * 43
        code, message = await refused(issuer.Sign(pb.SignRequest(csr_der=make_csr(new_key()), join_token=wrong)))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "not one of this controller's" in message
        assert "A" * 43 not in message

        token = await run.controller.engine.create_join_token(FRONT, "front-0", 0.05, "anna")
        made = time.time()
        await eventually(lambda: time.time() > made + 0.06)
        code, message = await refused(issuer.Sign(pb.SignRequest(csr_der=make_csr(new_key()), join_token=token)))
        assert (code, "expired" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_many_wrong_tokens_close_the_door_for_their_address_also_to_a_right_one(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        issuer = rpc.IssuerStub(run.attesting())
        csr = make_csr(new_key())
        codes = [
            (await refused(issuer.Sign(pb.SignRequest(csr_der=csr, join_token=f"guess-{n}"))))[0] for n in range(11)
        ]
        assert codes == [grpc.StatusCode.PERMISSION_DENIED] * 10 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
        token = await run.join_token()
        code, message = await refused(issuer.Sign(pb.SignRequest(csr_der=csr, join_token=token)))
        assert (code, "try again in" in message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


async def test_the_attesting_port_serves_the_issuer_alone_and_wants_an_attestation(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        channel = run.attesting()
        code, message = await refused(rpc.IssuerStub(channel).Sign(pb.SignRequest(csr_der=make_csr(new_key()))))
        assert (code, message.startswith("attestation: missing")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        request = pb.SignRequest(csr_der=make_csr(new_key()), service_account_token="x")
        code, message = await refused(rpc.IssuerStub(channel).Sign(request))
        assert (code, "not on Kubernetes" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
        assert message.endswith("use a join token [attestation-no-cluster]")
        code, _ = await refused(rpc.DirectoryStub(channel).Resolve(pb.ResolveRequest(address="10.0.0.1", port=1)))
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_certificate_is_renewed_for_its_own_workload_and_instance(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        held = await run.join("shop/cart", "cart-1")
        key = new_key()
        answer = await rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(key)))
        assert (answer.workload, answer.instance) == ("shop/cart", "cart-1")
        assert instance_of(answer.chain_der[0]) == "cart-1"

        renewed = Identity(key, tuple(answer.chain_der))
        again = await rpc.IssuerStub(run.mutual(renewed)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))
        assert again.spiffe_id == str(spiffe(CART))
        actions = [entry["action"] for entry in (await run.get("/audit"))["entries"]]
        assert actions.count("certificate.renew") == 2

        code, message = await refused(
            rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(new_key()), join_token="x"))
        )
        assert (code, message.startswith("attestation: not taken")) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_who_renews_without_end_is_kept_to_a_pace_and_others_are_not(tmp_path: Path) -> None:
    """A sidecar that was broken into: each signature takes the controller's processor and a line of the audit log."""
    async with running(tmp_path, svid_lifetime=3600.0) as run:
        held = await run.join("shop/cart", "cart-1")
        other = await run.join("shop/front", "front-0")
        stub = rpc.IssuerStub(run.mutual(held))
        for _ in range(RENEWALS):
            await stub.Sign(pb.SignRequest(csr_der=make_csr(new_key())))
        for _ in range(20):
            code, message = await refused(stub.Sign(pb.SignRequest(csr_der=make_csr(new_key()))))
            assert (code, "try again in" in message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), message
        await rpc.IssuerStub(run.mutual(other)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))
        entries = (await run.get("/audit"))["entries"]
        assert sum(entry["action"] == "certificate.renew" for entry in entries) == RENEWALS + 1


async def test_a_join_over_the_mutual_port_needs_a_certificate(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        credentials = grpc.ssl_channel_credentials(run.bundle.to_pem().encode())
        channel = run._channel(run.controller.grpc_server.bound, credentials)
        code, _ = await refused(rpc.IssuerStub(channel).Sign(pb.SignRequest(csr_der=make_csr(new_key())), timeout=10))
        assert code is grpc.StatusCode.UNAVAILABLE


def stranger(trust_domain: str) -> Identity:
    authority = CertificateAuthority.create(trust_domain, time.time())
    key = new_key()
    identity = SpiffeId.for_workload(trust_domain, "shop", "front", "front")
    return Identity(key, authority.sign_workload(make_csr(key), identity, time.time(), 60, "front-0").chain_der)


async def call(run: Running, identity: Identity) -> tuple[grpc.StatusCode, str]:
    request = pb.ResolveRequest(address="10.0.0.2", port=8080, protocol="TCP")
    return await refused(rpc.DirectoryStub(run.mutual(identity)).Resolve(request, timeout=10))


async def test_a_stranger_s_certificate_does_not_pass_the_handshake(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        for identity in (stranger(TRUST_DOMAIN), stranger("other.test")):
            assert (await call(run, identity))[0] is grpc.StatusCode.UNAVAILABLE
        expired = run.forge(spiffe(FRONT, "front"), "front-0", now=time.time() - 50, lifetime=20)
        assert (await call(run, expired))[0] is grpc.StatusCode.UNAVAILABLE
        # and the same calls with a good one pass
        good = await run.join()
        request = pb.ResolveRequest(address="10.0.0.2", port=8080, protocol="TCP")
        answer = await rpc.DirectoryStub(run.mutual(good)).Resolve(request)
        assert answer.workload == "shop/cart"


@pytest.mark.parametrize(
    ("identity", "instance", "said"),
    [
        (spiffe(FRONT, "front"), "", "names no instance"),
        (spiffe(FRONT, "front"), "front-9", "no instance 'front-9'"),
        (spiffe(FRONT, "front"), "cart-0", "no instance 'cart-0'"),
        (spiffe(FRONT, "another"), "front-0", "not in the inventory"),
        (spiffe(WorkloadRef("shop", "ghost")), "ghost-0", "not in the inventory"),
        (spiffe(WorkloadRef("data", "legacy")), "legacy-0", "not in the inventory"),
        (SpiffeId.for_account(TRUST_DOMAIN, "shop", "front"), "front-0", "is no workload's identity"),
    ],
)
async def test_a_certificate_of_ours_that_is_nobody_s_now_is_refused(
    tmp_path: Path, identity: SpiffeId, instance: str, said: str
) -> None:
    async with running(tmp_path) as run:
        code, message = await call(run, run.forge(identity, instance))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert said in message


async def test_the_controller_s_own_certificate_is_no_sidecar_s(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        key = new_key()
        chain = run.authority.sign_controller(make_csr(key), time.time(), 60)
        code, message = await call(run, Identity(key, chain.chain_der))
        assert (code, "no workload's identity" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_the_server_s_certificate_is_renewed_while_connections_live_on(tmp_path: Path) -> None:
    async with running(tmp_path, svid_lifetime=2.0) as run:
        key = new_key()
        identity = run.forge(spiffe(FRONT, "front"), "front-0", lifetime=600)
        old = rpc.DirectoryStub(run.mutual(identity))
        request = pb.ResolveRequest(address="10.0.0.2", port=8080, protocol="TCP")
        await old.Resolve(request)
        first = run.controller._keyring.material
        await eventually(lambda: run.controller._keyring.material.version >= first.version + 3)
        assert time.time() > first.not_after - 2
        await old.Resolve(request)  # the connection of before
        await rpc.DirectoryStub(run.mutual(identity)).Resolve(request)  # and a new handshake
        assert key_to_pem(key) not in first.chain_pem


async def test_after_a_restart_the_old_certificate_still_says_which_instance_calls(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        held = await run.join("shop/cart", "cart-1")
    async with running(tmp_path) as run:
        answer = await rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))
        assert answer.instance == "cart-1"


async def test_an_instance_that_left_the_inventory_is_renewed_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        held = await run.join("shop/cart", "cart-1")
        text = "\n".join(line for line in INVENTORY.splitlines() if "cart-1" not in line)
        run.settings.inventory.write_text(text)
        await eventually(lambda: "shop/cart-1" not in run.controller.engine.view.inventory.instances)
        code, message = await refused(
            rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))
        )
        assert (code, "was it removed" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


class Waiting:
    """In the place of the issuer: a join lasts until it is let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = asyncio.Event()

    async def join(self, csr_der: bytes, token: str, address: str) -> None:
        assert address == "127.0.0.1"
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1
        raise JoinTokenError("let go")


async def test_one_address_does_not_fill_by_itself_what_all_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 * services.CALLS_OF_AN_ADDRESS == ATTESTING_CALLS
    monkeypatch.setattr(services, "CALLS_OF_AN_ADDRESS", 3)
    issuer = Waiting()
    server = grpc.aio.server()
    rpc.add_IssuerServicer_to_server(services.AttestingIssuer(issuer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = rpc.IssuerStub(channel)
            request = pb.SignRequest(csr_der=b"x", join_token="x")
            for _ in range(2):  # those who left by themselves, and those who were answered, make room
                held = [stub.Sign(request) for _ in range(3)]
                await eventually(lambda: issuer.waiting == 3)
                code, message = await refused(stub.Sign(request))
                assert (code, "try again" in message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
                held[0].cancel()
                await eventually(lambda: issuer.waiting == 2)
                another = stub.Sign(request)
                await eventually(lambda: issuer.waiting == 3)
                issuer.go.set()
                for each in (*held[1:], another):
                    assert (await refused(each))[0] is grpc.StatusCode.PERMISSION_DENIED
                issuer.go.clear()
    finally:
        await server.stop(None)
