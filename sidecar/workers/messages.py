"""The contents of frames that have a form of their own: certificates with their key, proofs."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError as ProtobufDecodeError

from certs.bundle import TrustBundle
from certs.certificate import read_certificate
from certs.errors import CertError
from certs.inspection import HostSigner
from certs.keys import key_from_pem, key_to_pem
from graph.wire import hedgerow_pb2 as pb
from sidecar.credentials import Svid, check_svid
from sidecar.dataplane.lease import Proof
from sidecar.workers import values
from sidecar.workers.frames import Broken, Frame


def svid_blobs(svid: Svid) -> tuple[bytes, bytes]:
    """A certificate with its key: for the socket pair to a worker, and for nothing else."""
    bundle = svid.bundle
    answer = pb.SignResponse(
        chain_der=svid.chain_der,
        bundle=pb.TrustBundle(
            trust_domain=bundle.trust_domain, sequence=bundle.sequence, roots_der=list(bundle.roots_der)
        ),
        spiffe_id=str(svid.identity),
        instance=svid.instance,
        workload=str(svid.workload),
    )
    return key_to_pem(svid.key), answer.SerializeToString()


def read_svid(frame: Frame, trust_domain: str, now: float) -> Svid:
    """The certificate of an SVID frame, checked as if it came from anywhere.

    One that has ended is taken as of its last second: it proves nothing to any peer, but while there is no other one a
    worker that begins is of use to what needs none.

    :param now: seconds since the epoch
    :raises Broken: when it is none that may be used
    """
    if len(frame.blobs) != 2:
        raise Broken(f"SVID: {len(frame.blobs)} blobs")
    try:
        key: ec.EllipticCurvePrivateKey = key_from_pem(frame.blobs[0])
        answer = pb.SignResponse.FromString(frame.blobs[1])
        bundle = TrustBundle(answer.bundle.trust_domain, tuple(answer.bundle.roots_der), answer.bundle.sequence)
        chain = tuple(answer.chain_der)
        if chain:
            now = min(now, read_certificate(chain[0], "leaf").not_valid_after_utc.timestamp() - 1.0)
        return check_svid(chain, key, bundle, trust_domain, now)
    except (CertError, ProtobufDecodeError) as error:
        raise Broken(f"SVID: {error}") from None


def signer_parts(signer: HostSigner | None) -> tuple[dict[str, object], tuple[bytes, ...]]:
    """Head and blobs of INSPECT: for the socket pair to a worker, and for nothing else."""
    if signer is None:
        return {"hosts": []}, ()
    certificate = signer.signer.certificate.public_bytes(Encoding.DER)
    return {"hosts": sorted(signer.hosts)}, (key_to_pem(signer.signer.key), certificate, signer.root_der)


def read_signer(frame: Frame, now: float) -> HostSigner | None:
    """What stands in for hosts, checked as if it came from anywhere; None: nothing does, or what did has ended.

    :param now: seconds since the epoch
    :raises Broken: when it is none that may be used
    """
    hosts = frame.head.get("hosts")
    if not frame.blobs and hosts == []:
        return None
    if len(frame.blobs) != 3 or not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise Broken("INSPECT: not a key, two certificates and their hosts")
    try:
        ended = read_certificate(frame.blobs[1], "inspection").not_valid_after_utc.timestamp() <= now
        return None if ended else HostSigner.checked(frame.blobs[1:], key_from_pem(frame.blobs[0]), hosts, now)
    except CertError as error:
        raise Broken(f"INSPECT: {error}") from None


def proof_head(proof: Proof) -> dict[str, object]:
    """The head of PROOF and PROVED."""
    return {"proof": values.encode(proof)}


def read_proof(frame: Frame) -> Proof:
    """:raises Broken: when there is none"""
    try:
        return values.decode(Proof, frame.head.get("proof"))
    except values.Misfit as error:
        raise Broken(f"{frame.kind.name}: {error}") from None
