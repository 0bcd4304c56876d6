"""Certificates that prove the wrong thing, and handshakes of others, tried against real sidecars and a real controller.

``docs/threats.md`` says which attacker each test stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.ca import CertificateAuthority
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.svid import check_leaf, instance_of
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.certs.forge import Chain, Forge, Leaf, key_usage, uris
from tests.mesh.attacking import (
    ACCEPTED,
    CLIENT,
    EVIL,
    LOOPBACK_PORT,
    OPEN,
    PORT,
    REFUSED,
    SAYING,
    VICTIM,
    answers,
    calling,
    in_thread,
    issuing,
    presenting,
    scene,
    stolen,
    write_chain,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("closed_scene")]


def workloads() -> list[WorkloadSpec]:
    return scene()


async def test_only_a_workloads_own_valid_certificate_opens_a_tunnel_and_only_its_own_edges(
    mesh: LocalMesh, tmp_path: Path
) -> None:
    victim = mesh.pod(VICTIM).address
    whole = len(ACCEPTED) + len(SAYING)
    good = await in_thread(answers, stolen(mesh, CLIENT), victim, PORT, OPEN + SAYING, whole)
    assert good == ACCEPTED + SAYING, "the client's own certificate gets an answer"
    # a tunnel leads to the port that it was opened to, and says nothing of others
    for port in (PORT + 1, LOOPBACK_PORT):
        assert await in_thread(answers, stolen(mesh, CLIENT), victim, port, OPEN + SAYING, len(REFUSED)) == REFUSED
    for port in (15000, 15001, 15006, 15020):
        came = await in_thread(answers, stolen(mesh, CLIENT), victim, port, OPEN + SAYING, 1)
        assert came == b""
    assert await in_thread(answers, stolen(mesh, EVIL), victim, PORT, OPEN + SAYING, len(REFUSED)) == REFUSED
    for name, chain in _forged(mesh).items():
        context = presenting(mesh, write_chain(tmp_path, name, chain))
        came = await in_thread(answers, context, victim, PORT, OPEN + SAYING, len(REFUSED))
        # the controller is somebody, and nobody whom the policy lets in
        assert came == (REFUSED if name == "controller" else b""), name


def _forged(mesh: LocalMesh) -> dict[str, Chain]:
    """What the mesh's own issuing key could sign, and must not be taken for the client's identity now."""
    now = time.time()
    key, foreign = issuing(mesh, now), Forge.root(now)
    own = uris(_id("client"))
    authority = CertificateAuthority.load((mesh.controller_state / "ca" / "authority.pem").read_bytes())
    signer, server = new_key(), new_key()
    both = (*own, x509.DNSName("victim.shop"))
    return {
        "foreign": foreign.sign(Leaf(names=own)),
        "foreign intermediate": foreign.intermediate().sign(Leaf(names=own)),
        "expired": key.sign(Leaf(names=own, begins=-7200, ends=-5)),
        "not yet valid": key.sign(Leaf(names=own, begins=3600, ends=7200)),
        "another trust domain": key.sign(Leaf(names=uris("spiffe://evil.local/ns/shop/sa/client/wl/client"))),
        "two identities": key.sign(Leaf(names=(*own, *uris(_id("evil"))))),
        "a name beside it": key.sign(Leaf(names=both)),
        "clients only": key.sign(Leaf(names=own, purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))),
        "signing usage": key.sign(Leaf(names=own, usage=key_usage("digital_signature", "key_cert_sign"))),
        "an authority": key.sign(Leaf(names=own, constraints=x509.BasicConstraints(True, 0))),
        "the issuing certificate": Chain((key.der,), key.key),
        "policy signer": Chain(authority.sign_policy_signer(make_csr(signer), now).chain_der, signer),
        "controller": Chain(authority.sign_controller(make_csr(server), now, 600).chain_der, server),
    }


def _id(name: str) -> str:
    return str(SpiffeId.for_workload("hedgerow.local", "shop", name, name))


async def test_a_recorded_handshake_opens_nothing_and_no_session_is_resumed(mesh: LocalMesh) -> None:
    victim = mesh.pod(VICTIM).address
    context = stolen(mesh, CLIENT)
    flights, session = await in_thread(_record, context, victim)
    assert session is None or not session.has_ticket
    assert await in_thread(_replay, flights, victim) == b""


def _record(context: ssl.SSLContext, address: str) -> tuple[list[bytes], ssl.SSLSession | None]:
    """Use a tunnel once; what was sent, flight by flight, and its session."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    channel = context.wrap_bio(incoming, outgoing)
    flights: list[bytes] = []
    with socket.create_connection((address, PORT), 10) as sock:

        def exchange() -> None:
            if data := outgoing.read():
                flights.append(data)
                sock.sendall(data)

        while True:
            try:
                channel.do_handshake()
                break
            except ssl.SSLWantReadError:
                exchange()
                incoming.write(sock.recv(65536))
        channel.write(OPEN + SAYING)
        exchange()
        got = b""
        while len(got) < len(ACCEPTED) + len(SAYING):
            try:
                got += channel.read(4096)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
    assert got == ACCEPTED + SAYING
    return flights, channel.session


def _replay(flights: list[bytes], address: str) -> bytes:
    """Send the same bytes again; what the sidecar says after its own part of the handshake, that is not an alert."""
    with socket.create_connection((address, PORT), 10) as sock, contextlib.suppress(OSError):
        sock.sendall(flights[0])
        assert sock.recv(65536)[:1] == b"\x16"  # its hello: the recorded one is as good as any
        sock.sendall(b"".join(flights[1:]))
        rest = b""
        while more := sock.recv(65536):
            rest += more
        assert len(rest) < 200, "an alert at most"
    return b""


async def test_a_workload_can_not_pose_as_the_controller(mesh: LocalMesh) -> None:
    """The controller's name is in no other certificate: a sidecar that is led astray gives its flows to nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mesh.pod(EVIL).state_dir / "svid.pem")
    context.set_alpn_protocols(["h2"])
    listening = await asyncio.start_server(_never_called, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    roots = (mesh.root / "trust-bundle.pem").read_bytes()
    name = [("grpc.ssl_target_name_override", "hedgerow-controller.hedgerow-system.svc")]
    async with (
        listening,
        grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots), options=name) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification Check failed"):
            await rpc.IssuerStub(channel).Sign(pb.SignRequest(join_token="secret"), timeout=10)


async def _never_called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_a_certificate_is_renewed_for_its_own_workload_whatever_the_request_asks(mesh: LocalMesh) -> None:
    key = new_key()
    names = x509.SubjectAlternativeName(uris(_id("client")))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.DN_QUALIFIER, "client-0")])
    asking = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=True)
    async with calling(mesh, EVIL) as channel:
        issuer = rpc.IssuerStub(channel)
        for csr in (make_csr(key), asking.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)):
            answer = await issuer.Sign(pb.SignRequest(csr_der=csr), timeout=10)
            assert (answer.spiffe_id, answer.instance) == (_id("evil"), "evil-0")
            assert check_leaf(answer.chain_der[0], "hedgerow.local", time.time()) == SpiffeId.parse(_id("evil"))
            assert instance_of(answer.chain_der[0]) == "evil-0"
