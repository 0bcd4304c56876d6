"""The x509-limbo corpus (https://x509-limbo.com, Apache-2.0): its cases, and each one's handshake with our contexts.

The corpus is not part of the repository. It is looked for beside the checkout, or where ``HEDGEROW_LIMBO`` says.
Run as a program it prints the outcome of handshakes as JSON, so that a test can run it under a clock of the past.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.contexts import client_context, peer_certificates, server_context
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from tests.certs.handshakes import handshake, load_chain

TRUST_DOMAIN = "limbo.test"


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the corpus, as far as it concerns us.

    :param server: whether the peer is the server
    :param at: the moment to validate at, seconds since the epoch; None is now
    """

    id: str
    success: bool
    server: bool
    at: float | None
    trusted: tuple[bytes, ...]
    intermediates: tuple[bytes, ...]
    leaf: bytes
    pem: str
    has_key: bool
    max_chain_depth: int | None

    @property
    def now(self) -> float:
        return time.time() if self.at is None else self.at

    def bundle(self) -> TrustBundle:
        return TrustBundle(TRUST_DOMAIN, tuple(dict.fromkeys(self.trusted)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a handshake.

    :param refusal: what our end said when it gave up; empty when it did not
    :param peer_failure: why the peer could not take part; empty when it could
    :param received: the certificates that our end received, when it accepted them
    """

    refusal: str = ""
    peer_failure: str = ""
    received: tuple[bytes, ...] = ()


def corpus_path() -> Path:
    """Where the corpus is, if it is there."""
    default = Path(__file__).resolve().parents[3] / "shared" / "corpora" / "limbo-194.json"
    return Path(os.environ.get("HEDGEROW_LIMBO", default))


def load_corpus() -> dict[str, Case]:
    """All cases by their id."""
    document = json.loads(corpus_path().read_text())
    return {case["id"]: _case(case) for case in document["testcases"]}


def shake_hands(case: Case) -> Outcome:
    """One real handshake: our end trusts the case's roots, the other end presents the case's certificates and key."""
    now = time.time()
    authority = CertificateAuthority.create("own.test", now)
    key = new_key()
    own = authority.sign_workload(make_csr(key), SpiffeId.for_workload("own.test", "a", "b", "c"), now, 3600)
    peer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if case.server else ssl.PROTOCOL_TLS_CLIENT)
    peer.check_hostname = False
    peer.verify_mode = ssl.CERT_REQUIRED
    peer.set_ciphers("ALL:@SECLEVEL=0")  # a peer that minds nothing: what is refused, our end refused
    peer.load_verify_locations(cadata=b"".join(authority.bundle().roots_der))
    try:
        load_chain(peer, case.pem)
    except ssl.SSLError as error:
        return Outcome(peer_failure=f"certificate not loadable: {error}")
    if case.server:
        result = handshake(client_context(own.chain_der, key, case.bundle()), peer)
        ours, error, other = result.client, result.client_error, result.server_error
    else:
        result = handshake(peer, server_context(own.chain_der, key, case.bundle()))
        ours, error, other = result.server, result.server_error, result.client_error
    if error is not None and "ALERT" not in (error.reason or ""):
        return Outcome(refusal=str(error))
    if error is not None or other is not None:
        return Outcome(peer_failure=str(other or error))
    return Outcome(received=peer_certificates(ours))


def _case(case: dict[str, object]) -> Case:
    at = case["validation_time"]
    trusted, intermediates = case["trusted_certs"], case["untrusted_intermediates"]
    assert isinstance(trusted, list)
    assert isinstance(intermediates, list)
    return Case(
        id=str(case["id"]),
        success=case["expected_result"] == "SUCCESS",
        server=case["validation_kind"] == "SERVER",
        at=None if at is None else dt.datetime.fromisoformat(str(at)).timestamp(),
        trusted=tuple(map(ssl.PEM_cert_to_DER_cert, trusted)),
        intermediates=tuple(map(ssl.PEM_cert_to_DER_cert, intermediates)),
        leaf=ssl.PEM_cert_to_DER_cert(str(case["peer_certificate"])),
        pem="".join([str(case["peer_certificate"]), *intermediates, str(case["peer_certificate_key"] or "")]),
        has_key=bool(case["peer_certificate_key"]),
        max_chain_depth=case["max_chain_depth"],
    )


def main() -> None:
    cases = load_corpus()
    outcomes = {name: shake_hands(cases[name]) for name in sys.argv[1:]}
    print(
        json.dumps(
            {
                name: [outcome.refusal, outcome.peer_failure, [der.hex() for der in outcome.received]]
                for name, outcome in outcomes.items()
            }
        )
    )


if __name__ == "__main__":
    main()
