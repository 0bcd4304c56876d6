"""TLS contexts, by real handshakes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.ca import CertificateAuthority, SignedChain
from certs.certificate import pem_text
from certs.contexts import Contexts, client_context, peer_certificates, server_context, verify_connection
from certs.errors import CertError, InvalidCertificate, KeyMismatch, UntrustedChain
from certs.keys import key_to_pem, make_csr, new_key
from certs.spiffe import SpiffeId
from tests.certs.handshakes import Handshake, handshake, load_chain

NOW = time.time()
TD = "hedgerow.local"
AUTHORITY = CertificateAuthority.create(TD, NOW)
CART = SpiffeId.for_workload(TD, "shop", "default", "cart")
FRONT = SpiffeId.for_workload(TD, "shop", "default", "front")


class End:
    """One workload's credentials."""

    def __init__(self, identity: SpiffeId, authority: CertificateAuthority = AUTHORITY, now: float = NOW) -> None:
        self.key = new_key()
        self.chain: SignedChain = authority.sign_workload(make_csr(self.key), identity, now, 3600)
        self.bundle = authority.bundle()

    def client(self, *alpn: str) -> ssl.SSLContext:
        return client_context(self.chain.chain_der, self.key, self.bundle, alpn)

    def server(self, *alpn: str) -> ssl.SSLContext:
        return server_context(self.chain.chain_der, self.key, self.bundle, alpn)


CLIENT, SERVER = End(FRONT), End(CART)


def anonymous(*, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def assert_refused(result: Handshake, *, by_client: bool, reason: str) -> None:
    error = result.client_error if by_client else result.server_error
    assert error is not None
    assert reason in str(error)


def test_both_ends_learn_who_the_other_is() -> None:
    result = handshake(CLIENT.client("hedgerow/1"), SERVER.server("hedgerow/1"))
    assert result.succeeded
    assert result.client.version() == "TLSv1.3"
    assert result.client.selected_alpn_protocol() == result.server.selected_alpn_protocol() == "hedgerow/1"
    assert verify_connection(result.client, AUTHORITY.bundle(), NOW) == CART
    assert verify_connection(result.server, AUTHORITY.bundle(), NOW) == FRONT
    assert peer_certificates(result.client) == SERVER.chain.chain_der
    assert peer_certificates(result.server) == CLIENT.chain.chain_der


@pytest.mark.parametrize(
    ("offered", "selected"),
    [(("hedgerow/1", "h2"), "hedgerow/1"), (("h2",), None), ((), None), (("h2", "hedgerow/1"), "hedgerow/1")],
)
def test_plain_spiffe_peers_without_our_protocol_are_served(offered: tuple[str, ...], selected: str | None) -> None:
    result = handshake(CLIENT.client(*offered), SERVER.server("hedgerow/1"))
    assert result.succeeded
    assert result.server.selected_alpn_protocol() == selected


def test_contexts_are_made_once_for_each_list_of_protocols_and_demand_what_every_context_does() -> None:
    contexts = Contexts(SERVER.chain.chain_der, SERVER.key, SERVER.bundle)
    server = contexts.get(server_side=True, alpn=["istio"])
    assert contexts.get(server_side=True, alpn=("istio",)) is server
    others = [contexts.get(server_side=True), contexts.get(server_side=False, alpn=["istio"])]
    assert len({id(one) for one in (server, *others)}) == 3
    result = handshake(CLIENT.client("h2", "istio"), server)
    assert (result.succeeded, result.server.selected_alpn_protocol()) == (True, "istio")
    assert_refused(handshake(anonymous(server=False), server), by_client=False, reason="DID_NOT_RETURN_A_CERTIFICATE")
    offering = handshake(others[1], CLIENT.server("istio"))
    assert offering.client.selected_alpn_protocol() == "istio"
    assert verify_connection(offering.client, AUTHORITY.bundle(), NOW) == FRONT


def test_a_client_without_a_certificate_is_refused() -> None:
    result = handshake(anonymous(server=False), SERVER.server())
    assert_refused(result, by_client=False, reason="PEER_DID_NOT_RETURN_A_CERTIFICATE")


def test_a_server_without_a_certificate_is_refused() -> None:
    result = handshake(CLIENT.client(), anonymous(server=True))
    assert result.client_error is not None
    assert not result.succeeded


@pytest.mark.parametrize("trust_domain", [TD, "other.local"])
def test_certificates_of_another_authority_are_refused(trust_domain: str) -> None:
    other = CertificateAuthority.create(trust_domain, NOW)
    stranger = End(SpiffeId.for_workload(trust_domain, "shop", "default", "cart"), other)
    assert_refused(handshake(CLIENT.client(), stranger.server()), by_client=True, reason="CERTIFICATE_VERIFY_FAILED")
    stranger.bundle = AUTHORITY.bundle()  # it would talk to us
    assert_refused(handshake(stranger.client(), SERVER.server()), by_client=False, reason="CERTIFICATE_VERIFY_FAILED")


@pytest.mark.parametrize("age", [7200, -7200])
def test_certificates_out_of_their_time_are_refused(age: int) -> None:
    authority = CertificateAuthority.create(TD, NOW - 86400)
    good, bad = End(FRONT, authority), End(CART, authority, NOW - age)
    reason = "certificate has expired" if age > 0 else "not yet valid"
    assert_refused(handshake(good.client(), bad.server()), by_client=True, reason=reason)
    assert_refused(handshake(bad.client(), good.server()), by_client=False, reason=reason)


def test_the_policy_signers_certificate_is_refused_at_both_ends() -> None:
    signer = End(CART)
    signer.chain = AUTHORITY.sign_policy_signer(make_csr(signer.key), NOW)
    assert_refused(handshake(CLIENT.client(), signer.server()), by_client=True, reason="certificate purpose")
    assert_refused(handshake(signer.client(), SERVER.server()), by_client=False, reason="certificate purpose")


def test_the_second_opinion_is_asked_about_time_and_trust_domain() -> None:
    result = handshake(CLIENT.client(), SERVER.server())
    with pytest.raises(CertError, match="expired"):
        verify_connection(result.client, AUTHORITY.bundle(), NOW + 7200)
    with pytest.raises(UntrustedChain):
        verify_connection(result.client, CertificateAuthority.create("other.local", NOW).bundle(), NOW)


def test_a_connection_without_certificates_has_no_identity() -> None:
    server = anonymous(server=True)
    load_chain(server, pem_text(SERVER.chain.chain_der) + key_to_pem(SERVER.key).decode())
    result = handshake(anonymous(server=False), server)
    assert result.succeeded
    with pytest.raises(UntrustedChain, match="it sent no certificate"):
        verify_connection(result.server, AUTHORITY.bundle(), NOW)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_tls_1_3_is_spoken(version: ssl.TLSVersion) -> None:
    for as_client in (True, False):
        context = CLIENT.client() if as_client else SERVER.server()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        context.minimum_version = version
        result = handshake(context, SERVER.server()) if as_client else handshake(CLIENT.client(), context)
        assert result.succeeded == (version is ssl.TLSVersion.TLSv1_3)


def test_no_session_is_handed_out_or_resumed() -> None:
    client, server = CLIENT.client(), SERVER.server()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    first = client.wrap_bio(to_client, to_server)
    accepted = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (first, accepted):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    accepted.write(b"x")
    assert first.read(1) == b"x"  # a ticket would have come before it
    assert server.session_stats()["accept_good"] == 1
    assert first.session is None or not first.session.has_ticket
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    second = client.wrap_bio(to_client, to_server, session=first.session)
    accepted = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (second, accepted):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert not second.session_reused
    assert verify_connection(accepted, AUTHORITY.bundle(), NOW) == FRONT


def test_contexts_are_as_strict_as_they_say() -> None:
    for context in (CLIENT.client(), SERVER.server()):
        assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert not context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
        assert context.security_level == 2
        assert context.keylog_filename is None
        assert len(context.get_ca_certs(binary_form=True)) == 1
    assert SERVER.server().num_tickets == 0


def test_the_environment_cannot_have_session_keys_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    assert handshake(CLIENT.client(), SERVER.server()).succeeded
    assert not log.exists()


def test_old_and_new_roots_work_during_a_roll_over_and_the_old_one_ends() -> None:
    prepared = AUTHORITY.prepare_root(NOW)
    activated = prepared.activate_root(NOW)
    old, new = End(FRONT, prepared), End(CART, activated)
    for one, other in ((old, new), (new, old)):
        result = handshake(one.client(), other.server())
        assert result.succeeded
        assert {
            verify_connection(result.client, new.bundle, NOW),
            verify_connection(result.server, new.bundle, NOW),
        } == {
            FRONT,
            CART,
        }
    end = AUTHORITY.issuing.certificate.not_valid_after_utc.timestamp()
    new.bundle = activated.retire_roots(end + 1).bundle()
    assert_refused(handshake(old.client(), new.server()), by_client=False, reason="CERTIFICATE_VERIFY_FAILED")
    assert_refused(handshake(new.client(), old.server()), by_client=True, reason="CERTIFICATE_VERIFY_FAILED")


def test_a_key_of_another_certificate_is_refused() -> None:
    for make in (client_context, server_context):
        with pytest.raises(KeyMismatch):
            make(CLIENT.chain.chain_der, new_key(), AUTHORITY.bundle())
        with pytest.raises(InvalidCertificate):
            make((), CLIENT.key, AUTHORITY.bundle())
        with pytest.raises(InvalidCertificate):
            make((b"garbage",), CLIENT.key, AUTHORITY.bundle())


def test_keys_never_touch_a_disk_and_no_descriptor_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        CLIENT.client()
        SERVER.server()
    with pytest.raises(KeyMismatch):
        client_context(CLIENT.chain.chain_der, new_key(), AUTHORITY.bundle())
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


async def test_over_sockets_and_asyncio_too(listening: socket.socket) -> None:
    met: asyncio.Queue[SpiffeId | CertError] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await met.put(verify_connection(writer.get_extra_info("ssl_object"), AUTHORITY.bundle(), NOW))
            writer.write(await reader.readexactly(5))
        except CertError as error:
            await met.put(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, sock=listening, ssl=SERVER.server("hedgerow/1"))
    async with server:
        address = listening.getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=CLIENT.client("hedgerow/1"), server_hostname="")
        assert verify_connection(writer.get_extra_info("ssl_object"), AUTHORITY.bundle(), NOW) == CART
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert await met.get() == FRONT
        writer.close()
        await writer.wait_closed()


def test_a_blocking_socket_is_read_too(listening: socket.socket) -> None:
    outcome: list[SpiffeId] = []

    def serve() -> None:
        plain, _ = listening.accept()
        with SERVER.server().wrap_socket(plain, server_side=True) as end:
            outcome.append(verify_connection(end, AUTHORITY.bundle(), NOW))
            end.sendall(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        socket.create_connection(listening.getsockname()) as plain,
        CLIENT.client().wrap_socket(plain) as end,
    ):
        assert verify_connection(end, AUTHORITY.bundle(), NOW) == CART
        assert end.recv(1) == b"x"
    thread.join(10)
    assert outcome == [FRONT]
