"""Who is calling, from what a handshake leaves behind: our own rules on top of gRPC's."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import grpc
import pytest

from certs.ca import CertificateAuthority
from certs.certificate import pem_text
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from controller.rpc import caller as callers
from controller.rpc.caller import AuthContext, Proofs, Refused, identify
from controller.rpc.services import address_of
from controller.view import View
from tests.controller.mesh import FRONT, TRUST_DOMAIN, inventory

NOW = time.time()
AUTHORITY = CertificateAuthority.create(TRUST_DOMAIN, NOW)
VIEW = View(TRUST_DOMAIN, started_at=NOW, inventory=inventory())
IDENTITY = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "front", "front")


def presented(
    authority: CertificateAuthority = AUTHORITY, instance: str = "front-0", uid: str = ""
) -> dict[str, list[bytes]]:
    identity = replace(IDENTITY, trust_domain=authority.trust_domain)
    chain = authority.sign_workload(make_csr(new_key()), identity, NOW, 60, instance, uid).chain_der
    return {
        "ssl_tls_version": [b"TLSv1.3"],
        "x509_pem_cert": [pem_text(chain[:1]).encode()],
        "x509_pem_cert_chain": [pem_text(chain[1:]).encode()],
    }


def refusal(auth: AuthContext, now: float = NOW) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(Refused) as caught:
        identify(auth, VIEW, AUTHORITY.bundle(), now, Proofs())
    return caught.value.status, str(caught.value)


def test_the_instance_is_the_one_that_the_certificate_was_signed_for() -> None:
    caller = identify(presented(), VIEW, AUTHORITY.bundle(), NOW, Proofs())
    assert (caller.key, caller.instance.workload, caller.identity) == ("shop/front-0", FRONT, IDENTITY)
    assert NOW < caller.not_after <= NOW + 61


def known_as(uid: str) -> View:
    """The inventory, where front-0 has this uid."""
    known = inventory()
    there = {**known.instances, "shop/front-0": replace(known.instances["shop/front-0"], uid=uid)}
    return replace(VIEW, inventory=replace(known, instances=there))


def test_a_later_instance_of_the_same_name_is_another_one() -> None:
    auth, bundle = presented(uid="first"), AUTHORITY.bundle()
    assert identify(auth, known_as("first"), bundle, NOW, Proofs()).uid == "first"
    with pytest.raises(Refused, match="of an earlier 'front-0' of shop/front"):
        identify(auth, known_as("second"), bundle, NOW, Proofs())
    # where nobody gives uids, and for certificates of before, the name is what there is
    assert identify(auth, known_as(""), bundle, NOW, Proofs()).key == "shop/front-0"
    assert identify(presented(), known_as("second"), bundle, NOW, Proofs()).uid == ""


def test_a_chain_that_repeats_the_leaf_is_the_same_chain() -> None:
    auth = presented()
    auth["x509_pem_cert_chain"] = [auth["x509_pem_cert"][0] + auth["x509_pem_cert_chain"][0]]
    assert identify(auth, VIEW, AUTHORITY.bundle(), NOW, Proofs()).key == "shop/front-0"


def test_our_rules_hold_where_grpc_s_would_not() -> None:
    assert refusal(presented(), NOW + 3600)[0] is grpc.StatusCode.UNAUTHENTICATED  # expired
    assert refusal(presented(), NOW - 3600)[0] is grpc.StatusCode.UNAUTHENTICATED  # not valid yet
    for domain in (TRUST_DOMAIN, "other.test"):
        status, message = refusal(presented(CertificateAuthority.create(domain, NOW)))
        assert (status, message.startswith("the certificate is refused: chain: ")) == (
            grpc.StatusCode.UNAUTHENTICATED,
            True,
        )
    alone = presented() | {"x509_pem_cert_chain": [b""]}
    assert refusal(alone)[0] is grpc.StatusCode.UNAUTHENTICATED  # the issuing certificate is missing
    assert refusal({"ssl_tls_version": [b"TLSv1.2"]})[1].startswith("TLS 1.3 is required")
    assert refusal({})[1].startswith("no client certificate")
    assert refusal(presented() | {"x509_pem_cert": [b"garbage"]})[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_chain_is_verified_once_while_the_same_roots_hold_and_nothing_of_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[bytes] = []
    real = callers.verify_peer

    def verify(leaf: bytes, *others: Any) -> SpiffeId:
        verified.append(leaf)
        return real(leaf, *others)

    monkeypatch.setattr(callers, "verify_peer", verify)
    proofs, auth, bundle = Proofs(most=2), presented(), AUTHORITY.bundle()

    def known(auth: AuthContext, now: float = NOW) -> int:
        """How often it was verified for this."""
        before = len(verified)
        assert identify(auth, VIEW, bundle, now, proofs).key == "shop/front-0"
        return len(verified) - before

    assert [known(auth) for _ in range(3)] == [1, 0, 0]
    assert known(auth, NOW - 1) == 1, "a clock that went back: it may not have been good yet"
    assert known(auth, NOW + 50) == 0
    with pytest.raises(Refused, match="refused"):
        identify(auth, VIEW, bundle, NOW + 62, proofs)
    with pytest.raises(Refused, match="inventory"):
        identify(auth, View(TRUST_DOMAIN, started_at=NOW), bundle, NOW, proofs)
    # another chain to the same leaf is another; a refusal is not remembered
    for _ in range(2):
        before = len(verified)
        with pytest.raises(Refused):
            identify(auth | {"x509_pem_cert_chain": [b""]}, VIEW, bundle, NOW, proofs)
        assert len(verified) == before + 1
    assert known(auth, NOW) == 0
    # roots that have gone prove nothing any more
    with pytest.raises(Refused, match="refused"):
        identify(auth, VIEW, CertificateAuthority.create(TRUST_DOMAIN, NOW).bundle(), NOW, proofs)
    assert known(auth) == 1
    for _ in range(3):
        assert known(presented()) == 1
    assert len(proofs) == 2
    assert known(auth) == 1


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4711", "2001:db8::1"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::1"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_peer_s_address_is_read_from_grpc_s_name_of_it(peer: str, address: str) -> None:
    assert address_of(peer) == address
