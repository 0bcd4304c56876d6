"""What it takes to be believed as our certificate, and what a renewal may change."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from certs.ca import CertificateAuthority
from certs.errors import CertError, InvalidBundle, KeyMismatch, UntrustedChain
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from sidecar.credentials import MAX_CHAIN, CredentialStore, check_svid, next_bundle
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


@pytest.mark.parametrize("now", [NOW - 86400, NOW + 86400])
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


def test_peers_are_held_to_every_rule_at_the_present_time():
    now = NOW
    store = CredentialStore(svid(), lambda: now)
    leaf = chain_for(new_key(), FRONT)[0]
    assert store.verify_peer(leaf) == FRONT
    now = NOW + 7200
    with pytest.raises(CertError):
        store.verify_peer(leaf)
    now = NOW
    elsewhere = CertificateAuthority.create("elsewhere.test", NOW)
    foreign = SpiffeId.for_workload("elsewhere.test", "shop", "default", "front")
    with pytest.raises(CertError):
        store.verify_peer(chain_for(new_key(), foreign, elsewhere)[0])
    with pytest.raises(CertError):
        store.verify_peer(b"rubbish")
