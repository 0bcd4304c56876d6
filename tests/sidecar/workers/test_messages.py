"""What stands in for inspected hosts crosses to a worker whole, or not at all."""

from __future__ import annotations

import time

import pytest

from certs.certificate import pem_text
from certs.inspection import SIGNING_LIFETIME, HostSigner, InspectionAuthority
from certs.keys import key_to_pem, make_csr, new_key
from sidecar.workers.frames import Broken, Frame, Kind
from sidecar.workers.messages import read_signer, signer_parts

NOW = time.time()
API = "api.partner.example"
AUTHORITY = InspectionAuthority.create("hedgerow.test", NOW)


def signer():
    key = new_key()
    return HostSigner.checked(AUTHORITY.sign(make_csr(key), "shop/cart", [API], NOW), key, [API], NOW)


def frame(head, blobs):
    return Frame(Kind.INSPECT, head, tuple(blobs))


def test_there_and_back():
    held = signer()
    got = read_signer(frame(*signer_parts(held)), NOW)
    assert got is not None
    assert (got.hosts, got.root_der, got.not_after) == (held.hosts, held.root_der, held.not_after)
    assert key_to_pem(got.signer.key) == key_to_pem(held.signer.key)
    assert read_signer(frame(*signer_parts(None)), NOW) is None
    assert read_signer(frame(*signer_parts(held)), NOW + SIGNING_LIFETIME + 1) is None, "what has ended is nothing"


def test_anything_else_ends_the_conversation():
    head, (key, certificate, root) = signer_parts(signer())
    for wrong_head, blobs in (
        ({"hosts": ["www.partner.example"]}, (key, certificate, root)),
        ({"hosts": [7]}, (key, certificate, root)),
        ({}, (key, certificate, root)),
        ({}, ()),
        (head, ()),
        (head, (key, certificate)),
        (head, (key_to_pem(new_key()), certificate, root)),
        (head, (key, root, root)),
        (head, (pem_text([root]).encode(), certificate, root)),
        (head, (key, b"x", root)),
    ):
        with pytest.raises(Broken, match="INSPECT"):
            read_signer(frame(wrong_head, blobs), NOW)
