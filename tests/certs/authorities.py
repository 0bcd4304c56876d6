"""One authority, and leaves of it to sign and to verify."""

from __future__ import annotations

import time

from certs.ca import CertificateAuthority, SignedChain
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.verify import verify_peer

NOW = float(int(time.time()))
DAY = 86400.0
TD = "hedgerow.local"
CART = SpiffeId.for_workload(TD, "shop", "default", "cart")
AUTHORITY = CertificateAuthority.create(TD, NOW)


def signed(authority: CertificateAuthority, now: float = NOW, lifetime: float = 3600) -> SignedChain:
    return authority.sign_workload(make_csr(new_key()), CART, now, lifetime)


def verify(chain: SignedChain, authority: CertificateAuthority, now: float) -> SpiffeId:
    return verify_peer(chain.chain_der[0], chain.chain_der[1:], authority.bundle(), now)
