"""Whether a signed policy snapshot may be put in force.

The governing rules:

1. Verify, then parse: not a byte of a snapshot is read before its signature was checked against the trust bundle.
2. Only forward: a snapshot that is older than the one in force is refused, and so is another one of the same version.
3. It is ours or nobody's: of our workload, of our trust domain.
"""

from __future__ import annotations

from dataclasses import replace

from certs.errors import CertError
from certs.signing import verify_payload
from graph.errors import DecodeError
from graph.model import Snapshot
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import decode_snapshot
from sidecar.credentials import CredentialStore
from sidecar.errors import SnapshotRejected

MAX_SIGNER_CHAIN = 5


def read_snapshot(signed: pb.SignedSnapshot, credentials: CredentialStore, held: Snapshot, now: float) -> Snapshot:
    """Turn what was pushed, or lay on the disk, into a snapshot that may be put in force.

    :param held: the snapshot in force, of which workload, trust domain and version are compared
    :param now: seconds since the epoch
    :raises SnapshotRejected: saying which rule is broken
    """
    payload = signed.payload
    if len(signed.signer_chain_der) > MAX_SIGNER_CHAIN:
        raise SnapshotRejected(f"signer: {len(signed.signer_chain_der)} certificates, {MAX_SIGNER_CHAIN} at most")
    try:
        verify_payload(payload, signed.signature, tuple(signed.signer_chain_der), credentials.svid.bundle, now)
    except CertError as error:
        raise SnapshotRejected(f"signature: {error}") from None
    try:
        snapshot = decode_snapshot(payload)
    except DecodeError as error:
        raise SnapshotRejected(str(error)) from None
    if snapshot.workload != held.workload:
        raise SnapshotRejected(f"workload: it is for {snapshot.workload} and this is {held.workload}")
    if snapshot.trust_domain != held.trust_domain:
        raise SnapshotRejected(f"trust_domain: it is for {snapshot.trust_domain!r} and this is {held.trust_domain!r}")
    if snapshot.version < held.version:
        raise SnapshotRejected(f"version: {snapshot.version} is older than {held.version}, which is in force")
    if snapshot.version == held.version and replace(snapshot, issued_at=held.issued_at) != held:
        raise SnapshotRejected(f"version: {snapshot.version} is in force and says something else")
    return snapshot
