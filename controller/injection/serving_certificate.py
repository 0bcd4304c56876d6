"""The certificate that API servers see: read from files, and read again when they change, without dropping anybody.

Every new handshake takes the context of that moment; connections that are open go on. Files that do not fit each other
(somebody is just writing them) leave the certificate before in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

log = logging.getLogger("hedgerow.injector")


class ServingCertificate:
    """:param certificate: PEM file with its chain
    :param key: PEM file
    :param clock: seconds since the epoch
    """

    def __init__(self, certificate: Path, key: Path, clock: Callable[[], float]) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._seen: object = None
        self._current: ssl.SSLContext | None = None
        self.valid_from = 0.0
        #: Seconds since the epoch; 0: there is none yet.
        self.valid_until = 0.0
        #: How often files were taken, and how often they could not be.
        self.loaded = 0
        self.failed = 0
        #: For the listener: never used by itself, every handshake is led to the certificate of that moment.
        self.context = _bare()
        self.context.sni_callback = self._choose

    @property
    def usable(self) -> bool:
        """Whether there is one, and it holds now."""
        return self._current is not None and self.valid_from <= self._clock() < self.valid_until

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None

    def refresh(self) -> bool:
        """Look at the files, and take them when they have changed.

        :returns: whether there is another certificate now
        """
        seen = self._stamp()
        if seen == self._seen:
            return False
        try:
            until, since = _validity(self._certificate)
            fresh = _bare()
            fresh.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if self._stamp() == seen:
                self._seen = seen  # told once; another try when they change
            self.failed += 1
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            log.warning("the certificate in %s and %s can not be used yet: %s", self._certificate, self._key, reason)
            return False
        if self._stamp() != seen:
            return False  # changed while we read; the next look takes it
        self._current, self._seen = fresh, seen
        self.valid_from, self.valid_until = since, until
        self.loaded += 1
        log.info("serving with the certificate that holds until %d (seconds since the epoch)", until)
        return True

    async def follow(self, interval: float) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(interval)
            self.refresh()

    def _stamp(self) -> object:
        """What changes when a file does. A Secret's files are links that change places all at once."""
        found = []
        for path in (self._certificate, self._key):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def _bare() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _validity(path: Path) -> tuple[float, float]:
    """Until when and since when the first certificate of a file holds.

    :raises ValueError: when there is none
    """
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc.timestamp(), certificate.not_valid_before_utc.timestamp()
