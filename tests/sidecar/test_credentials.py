"""What it takes to be believed as our certificate, and what a renewal may change."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.contexts import client_context, peer_certificates, server_context
from certs.errors import CertError, InvalidBundle, KeyMismatch, UntrustedChain
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from sidecar.credentials import MAX_CHAIN, CredentialStore, check_svid, next_bundle
from tests.certs.forge import Forge, Leaf, uris
from tests.certs.handshakes import handshake
from tests.sidecar.fake_controller import IDENTITY, TRUST_DOMAIN

NOW = time.time()
AUTHORITY = CertificateAuthority.create(TRUST_DOMAIN, NOW)
OTHER = CertificateAuthority.create(TRUST_DOMAIN, NOW)
FRONT = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "front")


def chain_for(key, identity=IDENTITY, authority=AUTHORITY):
    return authority.sign_workload(make_csr(key), identity, NOW, 3600).chain_der


def svid(identity=IDENTITY):
    key = new_key()
    return check_svid(chain_for(key, identity), key, AUTHORITY.bundle(), TRUST_DOMAIN, NOW)


def test_a_good_chain_becomes_an_svid():
    made = svid()
    assert made.identity == IDENTITY
    assert str(made.workload) == "shop/cart"
    assert made.not_before <= NOW < made.not_after <= NOW + 3601
    assert made.chain_pem.count(b"BEGIN CERTIFICATE") == len(made.chain_der)


def test_another_key_is_refused():
    with pytest.raises(KeyMismatch, match="another key"):
        check_svid(chain_for(new_key()), new_key(), AUTHORITY.bundle(), TRUST_DOMAIN, NOW)


def test_another_authority_is_refused():
    key = new_key()
    with pytest.raises(UntrustedChain):
        check_svid(chain_for(key, authority=OTHER), key, AUTHORITY.bundle(), TRUST_DOMAIN, NOW)


def test_another_trust_domain_is_refused():
    key = new_key()
    with pytest.raises(InvalidBundle, match=r"ours is 'elsewhere\.test'"):
        check_svid(chain_for(key), key, AUTHORITY.bundle(), "elsewhere.test", NOW)


@pytest.mark.parametrize("now", [NOW - 86400, NOW + 86400], ids=["before", "after"])
def test_a_certificate_of_another_time_is_refused(now):
    key = new_key()
    with pytest.raises(CertError):
        check_svid(chain_for(key), key, AUTHORITY.bundle(), TRUST_DOMAIN, now)


@pytest.mark.parametrize("count", [0, MAX_CHAIN + 1])
def test_a_chain_of_absurd_length_is_refused(count):
    key = new_key()
    with pytest.raises(UntrustedChain, match=f"{count} certificates"):
        check_svid((chain_for(key)[0],) * count, key, AUTHORITY.bundle(), TRUST_DOMAIN, NOW)


def test_the_controllers_certificate_is_no_workloads():
    key = new_key()
    chain = AUTHORITY.sign_controller(make_csr(key), NOW, 3600).chain_der
    with pytest.raises(UntrustedChain, match="names no workload"):
        check_svid(chain, key, AUTHORITY.bundle(), TRUST_DOMAIN, NOW)


def test_bundles_change_by_overlap_and_never_back():
    old = AUTHORITY.bundle()
    new = AUTHORITY.prepare_root(NOW).bundle()
    assert next_bundle(old, new) == new
    assert next_bundle(new, old) == new
    assert next_bundle(old, old) == old
    with pytest.raises(InvalidBundle, match="overlap"):
        next_bundle(old, replace(OTHER.bundle(), sequence=9))
    with pytest.raises(InvalidBundle, match="elsewhere"):
        next_bundle(old, CertificateAuthority.create("elsewhere.test", NOW).bundle())


def test_a_renewal_makes_new_contexts_and_leaves_the_old_ones_alone():
    store = CredentialStore(svid(), lambda: NOW)
    client, server = store.client_context, store.server_context
    told = []
    store.subscribe(lambda: told.append(store.not_after))
    renewed = svid()
    store.replace(renewed)
    assert store.svid is renewed
    assert store.client_context is not client
    assert store.server_context is not server
    assert told == [renewed.not_after]


def test_contexts_for_other_meshes_are_of_the_certificate_in_force():
    store, peer = CredentialStore(svid(), lambda: NOW), CredentialStore(svid(FRONT), lambda: NOW)
    before = store.mesh_context(server_side=True, alpn=("istio",))
    assert store.mesh_context(server_side=True, alpn=("istio",)) is before
    store.replace(svid())
    renewed = store.mesh_context(server_side=True, alpn=("istio",))
    assert renewed is not before
    result = handshake(peer.mesh_context(server_side=False, alpn=("istio",)), renewed)
    assert result.client.selected_alpn_protocol() == "istio"
    assert peer_certificates(result.client) == store.svid.chain_der
    assert store.verify_connection(result.server) == FRONT


def test_a_renewal_does_not_change_who_we_are():
    store = CredentialStore(svid(), lambda: NOW)
    held, context = store.svid, store.client_context
    with pytest.raises(CertError, match="front"):
        store.replace(svid(FRONT))
    assert store.svid is held
    assert store.client_context is context


def test_a_failing_subscriber_does_not_keep_the_others_on_an_old_certificate(caplog):
    store = CredentialStore(svid(), lambda: NOW)
    told = []
    store.subscribe(lambda: 1 / 0)
    store.subscribe(lambda: told.append(1))
    store.replace(svid())
    assert told == [1]
    assert "ZeroDivisionError" in caplog.text


def test_the_instance_is_the_one_that_the_certificate_names():
    key = new_key()
    chain = AUTHORITY.sign_workload(make_csr(key), IDENTITY, NOW, 3600, "cart-2").chain_der
    named = check_svid(chain, key, AUTHORITY.bundle(), TRUST_DOMAIN, NOW)
    assert CredentialStore(named, lambda: NOW).instance == "cart-2"
    assert CredentialStore(svid(), lambda: NOW).instance == ""


@pytest.mark.parametrize("side", ["client", "server"])
def test_peers_are_held_to_every_rule_at_the_present_time(side):
    now = NOW
    store, peer = CredentialStore(svid(), lambda: now), CredentialStore(svid(FRONT), lambda: NOW)
    if side == "client":
        session = handshake(store.client_context, peer.server_context).client
    else:
        session = handshake(peer.client_context, store.server_context).server
    assert store.verify_connection(session) == FRONT
    now = NOW + 7200
    with pytest.raises(CertError, match="expired"):
        store.verify_connection(session)
    now = NOW
    store.replace(svid())
    assert store.verify_connection(session) == FRONT


def test_a_root_that_is_trusted_no_more_proves_nothing_from_then_on():
    store = CredentialStore(svid(), lambda: NOW)
    session = handshake(store.client_context, CredentialStore(svid(FRONT), lambda: NOW).server_context).client
    key = new_key()
    store.replace(check_svid(chain_for(key, authority=OTHER), key, OTHER.bundle(), TRUST_DOMAIN, NOW))
    with pytest.raises(UntrustedChain):
        store.verify_connection(session)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ({}, ""),
        ({"names": uris("spiffe://elsewhere.test")}, "its SPIFFE ID is"),
        ({"names": uris(str(IDENTITY))}, "its SPIFFE ID is"),
    ],
    ids=["none", "foreign-authority", "a-workload-that-signs"],
)
def test_a_defect_above_the_leaf_that_openssl_does_not_mind_is_refused(side, defect, complaint):
    root = Forge.root(NOW)
    bundle = TrustBundle(TRUST_DOMAIN, (root.der,))
    good = root.intermediate().sign(Leaf(names=uris(str(IDENTITY))))
    store = CredentialStore(check_svid(good.ders, good.key, bundle, TRUST_DOMAIN, NOW), lambda: NOW)
    peer = root.intermediate(**defect).sign(Leaf(names=uris(str(FRONT))))
    if side == "client":
        ends = handshake(store.client_context, server_context(peer.ders, peer.key, bundle))
    else:
        ends = handshake(client_context(peer.ders, peer.key, bundle), store.server_context)
    assert ends.succeeded, "OpenSSL does not mind"
    session = ends.client if side == "client" else ends.server
    if complaint:
        with pytest.raises(CertError, match=complaint):
            store.verify_connection(session)
    else:
        assert store.verify_connection(session) == FRONT
