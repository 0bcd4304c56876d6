"""The TLS contexts of egress inspection: what our own application is shown in place of a host, and how that host itself
is called. Without mitmproxy.

Rules:

1. Keys are made here and stay in memory: that of the signing certificate and one for all leaves under it. A new signing
   certificate brings new ones.
2. The host has to prove itself to the system's roots, or those of the settings, by the very name that DNS has bound to
   its address and the application has asked for. There is no way to switch that off.
3. TLS 1.2 is the least on both sides, with forward secrecy and authenticated encryption alone; nothing is resumed.
"""

from __future__ import annotations

import logging
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from certs.contexts import named_client_context, named_server_context
from certs.inspection import HostSigner
from certs.keys import new_key

_log = logging.getLogger(__name__)

#: What can be inspected, the preferred one first.
PROTOCOLS: Final = ("h2", "http/1.1")
#: Every choice that a client can leave a host among them.
_OFFERS: Final[tuple[tuple[str, ...], ...]] = (PROTOCOLS, ("h2",), ("http/1.1",), ())
#: Contexts kept for hosts; a workload inspects 64 hosts at most, and each answers in up to three ways.
_MOST: Final = 192


class Certificates:
    """Of one sidecar.

    :param roots: PEM file with what the hosts' certificates have to lead to; None: what the system trusts
    :param clock: seconds since the epoch
    """

    def __init__(self, roots: Path | None, clock: Callable[[], float]) -> None:
        self._roots = roots
        self._clock = clock
        self._signer: HostSigner | None = None
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._shown: OrderedDict[tuple[str, str], ssl.SSLContext] = OrderedDict()
        self._upstream: dict[tuple[str, ...], ssl.SSLContext] = {}
        #: Called after every change of the signing certificate.
        self.changed: Callable[[], None] = lambda: None

    @property
    def signer(self) -> HostSigner | None:
        """The signing certificate in force."""
        return self._signer

    def prepare(self) -> None:
        """Read the roots. May block.

        :raises OSError: when they can not be read, or are none
        """
        if not self._upstream:
            self._upstream = {offer: named_client_context(self._roots, offer) for offer in _OFFERS}

    def hold(self, signer: HostSigner) -> None:
        """Use a new signing certificate from now on. Connections that are open keep theirs."""
        self._signer = signer
        self._key = new_key()
        self._shown.clear()
        self.changed()

    def drop(self) -> None:
        """Inspect nothing any more."""
        if self._signer is not None:
            self._signer = self._key = None
            self._shown.clear()
            self.changed()

    def why_not(self, host: str) -> str:
        """Why we can not stand in for ``host`` now, for people; empty: we can."""
        signer = self._signer
        if signer is None or not self._upstream:
            return "the controller has not signed what its application would be shown"
        if host not in signer.hosts:
            return "the controller has signed for other hosts so far"
        return "" if self._clock() < signer.not_after else "the certificate for that has ended"

    def shown(self, host: str, protocol: str) -> ssl.SSLContext:
        """How we stand in for ``host``.

        :param protocol: that was agreed on with it; empty: none
        :raises CertError: when we can not
        """
        context = self._shown.get((host, protocol))
        if context is None:
            signer, key = self._signer, self._key
            assert signer is not None
            assert key is not None
            chain = signer.leaf(key.public_key(), host)
            context = named_server_context(chain, key, (protocol,) if protocol else ())
            while len(self._shown) >= _MOST:
                self._shown.popitem(last=False)
            self._shown[host, protocol] = context
        else:
            self._shown.move_to_end((host, protocol))
        return context

    def upstream(self, offered: Sequence[str]) -> ssl.SSLContext:
        """How a host is called by a client that can speak these of :data:`PROTOCOLS`."""
        return self._upstream[tuple(name for name in PROTOCOLS if name in offered)]
