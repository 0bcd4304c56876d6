"""gRPC brings a TLS library of its own (BoringSSL): our certificates and their constraints must mean the same to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from certs.ca import CertificateAuthority, SignedChain
from certs.certificate import pem_text
from certs.keys import key_to_pem, make_csr, new_key
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from tests.certs.forge import GOOD_ID, Chain, Forge, Leaf, uris

NOW = time.time()
TD = "hedgerow.local"
AUTHORITY = CertificateAuthority.create(TD, NOW)
ROOTS = AUTHORITY.bundle().to_pem().encode()
FRONT = SpiffeId.for_workload(TD, "shop", "default", "front")


def certified(identity: SpiffeId | None, authority: CertificateAuthority = AUTHORITY) -> tuple[bytes, bytes]:
    """Key and chain in PEM: a workload's, or the controller's when there is no identity."""
    key = new_key()
    csr = make_csr(key)
    signed: SignedChain = (
        authority.sign_controller(csr, NOW, 3600)
        if identity is None
        else authority.sign_workload(csr, identity, NOW, 3600)
    )
    return key_to_pem(key), pem_text(signed.chain_der).encode()


def presented(chain: Chain) -> tuple[bytes, bytes]:
    """Key and chain in PEM of a forged chain."""
    certificates, begin, key = chain.pem.partition("-----BEGIN PRIVATE KEY-----")
    return (begin + key).encode(), certificates.encode()


def who(_: bytes, context: grpc.ServicerContext) -> bytes:
    return context.auth_context()["x509_subject_alternative_name"][0]


def serve(pair: tuple[bytes, bytes]) -> tuple[grpc.Server, int]:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler("test", {"Who": grpc.unary_unary_rpc_method_handler(who)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], ROOTS, require_client_auth=True))
    server.start()
    return server, port


@pytest.fixture
def controller() -> Iterator[int]:
    server, port = serve(certified(None))
    yield port
    server.stop(None).wait(10)


def ask(port: int, pair: tuple[bytes, bytes], roots: bytes = ROOTS) -> str:
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    options = [("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        answer: bytes = channel.unary_unary("/test/Who")(b"", timeout=20)
    return answer.decode()


def test_a_workload_and_the_controller_understand_each_other(controller: int) -> None:
    assert ask(controller, certified(FRONT)) == str(FRONT)


def test_a_stranger_is_refused(controller: int) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(controller, certified(FRONT, CertificateAuthority.create(TD, NOW)))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_trusts_only_its_bundle(controller: int) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(controller, certified(FRONT), CertificateAuthority.create(TD, NOW).bundle().to_pem().encode())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_workload_cannot_pass_for_the_controller() -> None:
    server, port = serve(certified(SpiffeId.for_workload(TD, "hedgerow-system", "default", "liar")))
    try:
        with pytest.raises(grpc.RpcError) as refused:
            ask(port, certified(FRONT))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(None).wait(10)


def test_name_constraints_bind_grpc_too(controller: int) -> None:
    """A stolen issuing key can sign for no other trust domain."""
    thief = Forge(NOW, AUTHORITY.issuing.certificate, AUTHORITY.issuing.key)
    assert ask(controller, presented(thief.sign(Leaf()))) == GOOD_ID
    with pytest.raises(grpc.RpcError) as refused:
        ask(controller, presented(thief.sign(Leaf(names=uris("spiffe://other.local/ns/a/sa/b")))))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
