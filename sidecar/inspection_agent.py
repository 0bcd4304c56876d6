"""Has the controller sign what our application is shown in place of hosts that its workload inspects, keeps that fresh,
and writes down what the application has to trust.

The governing rules:

1. Asked for is only what the snapshot in force says, of that what the settings name where they name hosts, and nothing
   while it says nothing.
2. Nothing of an answer is used before all of it was checked (:meth:`certs.inspection.HostSigner.checked`).
3. Keys stay in memory. So a sidecar that starts while the controller is away inspects nothing, and lets nothing to
   inspected hosts pass unread, until it is back.
4. What the application trusts is written to the directory of the settings: ``inspection-root.pem``, our root alone, and
   ``ca-bundle.pem``, the system's roots with it. Until both are there we are not ready: an application that is started
   when we are ready finds them. One whose pod asks for hosts that the controller does not grant is given the system's
   roots alone, so that it goes on without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

from certs.certificate import pem_text
from certs.errors import CertError
from certs.inspection import HostSigner
from certs.keys import make_csr, new_key
from certs.rotation import renewal_at
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.authority import PolicyAuthority
from sidecar.channel import Session, translated
from sidecar.errors import ControllerRefused
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.settings import EgressSettings

log = logging.getLogger(__name__)

#: Seconds that the controller has for an answer.
_TIMEOUT: Final = 10.0
#: Seconds after which a clock is looked at again, or a controller asked that knows of fewer hosts than we do.
_LONGEST: Final = 30.0
_AGAIN: Final = 5.0
#: Seconds after the first snapshot in which the next may still name hosts: pods and what they ask for come together.
_GRANT: Final = 3.0
_PERMISSION: Final = "its namespace has to permit it: hedgerow.dev/inspectable-hosts, docs/injection.md"

ROOT_FILE: Final = "inspection-root.pem"
BUNDLE_FILE: Final = "ca-bundle.pem"
#: Where systems keep their roots as one file, beside what OpenSSL says itself.
_SYSTEMS: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class InspectionAgent:
    """Of one sidecar.

    :param certificates: gets what was signed
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        authority: PolicyAuthority,
        certificates: Certificates,
        settings: EgressSettings,
        random: Random,
        clock: Callable[[], float],
    ) -> None:
        self._authority = authority
        self._certificates = certificates
        self._settings = settings
        self._random = random
        self._clock = clock
        self._changed = asyncio.Event()
        self._due = 0.0  # when the next one is to be asked for
        authority.subscribe(self._changed.set)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the snapshot in force says that we inspect."""
        return tuple(sorted({one.host for one in self._authority.inspected}))

    @property
    def _promised(self) -> bool:
        """Whether our application was told to trust what we write, whatever the controller says."""
        return self._settings.directory is not None and bool(self._settings.hosts)

    def missing(self) -> list[str]:
        """What our application would look for in vain, for people."""
        directory = self._settings.directory
        if directory is None:
            return []
        bundle = directory / BUNDLE_FILE
        if self.hosts and not (directory / ROOT_FILE).exists():
            return [f"{bundle} is not there yet: the controller has not signed for the inspected hosts"]
        if self._promised and not bundle.exists():
            return [f"{bundle} is not there yet: the controller may still let us inspect hosts"]
        return []

    async def session(self, session: Session) -> None:
        """Keep a certificate in force for the hosts of the snapshot.

        :raises ControllerUnavailable, ControllerRefused: when there is none to be had
        """
        while True:
            self._changed.clear()
            hosts, held = self.hosts, self._certificates.signer
            if not hosts:
                self._certificates.drop()
                if self._promised and self._authority.version and not self._written():
                    await self._go_without()
                else:
                    await self._changed.wait()
                continue
            asked = held is not None and held.hosts == set(hosts)
            wait = self._due - self._clock()
            if wait > 0 and asked:
                await self._rest(min(wait, _LONGEST))
                continue
            signer = await self._sign(session, hosts)
            session.established()
            await asyncio.to_thread(self._prepare, signer)
            self._certificates.hold(signer)
            self._due = renewal_at(signer.not_before, signer.not_after, self._random)
            log.info(
                "what stands in for %s was signed, good for %.0f s", ", ".join(hosts), signer.not_after - self._clock()
            )
            if signer.hosts != set(hosts):
                await self._rest(_AGAIN)

    async def _go_without(self) -> None:
        """Let the application begin with what the system trusts, unless hosts are named in time after all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRANT):
                while not self.hosts:
                    await self._changed.wait()
                    self._changed.clear()
        if not self.hosts:
            await asyncio.to_thread(self._write, None)
            log.warning("the controller does not let us inspect what this pod asks for: %s", _PERMISSION)

    async def _rest(self, seconds: float) -> None:
        """Wait for another snapshot, for so long at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _sign(self, session: Session, hosts: tuple[str, ...]) -> HostSigner:
        key = new_key()
        with translated():
            request = pb.InspectionRequest(csr_der=make_csr(key))
            answer: pb.InspectionResponse = await rpc.InspectionStub(session.channel).Sign(request, timeout=_TIMEOUT)
        try:
            return HostSigner.checked(tuple(answer.chain_der), key, hosts, self._clock())
        except CertError as error:
            raise ControllerRefused(f"its answer can not be used: {error}") from None

    def _prepare(self, signer: HostSigner) -> None:
        """:raises ControllerRefused: when what the hosts or the application trust can not be read or written"""
        with _usable():
            self._certificates.prepare()
        self._write(signer.root_der)

    def _written(self) -> bool:
        return self._settings.directory is not None and (self._settings.directory / BUNDLE_FILE).exists()

    def _write(self, root_der: bytes | None) -> None:
        """:raises ControllerRefused: when what the application trusts can not be read or written"""
        with _usable():
            if self._settings.directory is not None:
                write_roots(self._settings.directory, self._settings.roots, root_der)


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """:raises ControllerRefused: when a file, or what is in it, can not be used; tried again like every refusal"""
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        raise ControllerRefused(f"inspect.egress can not be used: {where}{error.strerror or error}") from None


def write_roots(directory: Path, roots: Path | None, root_der: bytes | None) -> None:
    """Write what the application has to trust; others may read it.

    :param roots: what else it trusts; None: what this system does
    :param root_der: ours; None: there is none
    :raises OSError: when it can not be written
    """
    own = pem_text([root_der]).encode("ascii") if root_der is not None else b""
    system = roots if roots is not None else system_roots()
    others = system.read_bytes() if system is not None else b""
    if system is None:
        log.warning("inspect.egress.roots: this system has no file of roots; %s holds ours alone", BUNDLE_FILE)
    directory.mkdir(parents=True, exist_ok=True)
    files = {BUNDLE_FILE: others.rstrip() + b"\n" * bool(others) + own} | ({ROOT_FILE: own} if own else {})
    for name, data in files.items():
        path, beside = directory / name, directory / f".{name}.new"
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data:
                continue
        beside.write_bytes(data)
        beside.chmod(0o644)
        os.replace(beside, path)


def system_roots() -> Path | None:
    """The file with the roots that this system trusts."""
    known = ssl.get_default_verify_paths().cafile
    return next((path for path in map(Path, (*([known] if known else ()), *_SYSTEMS)) if path.is_file()), None)
