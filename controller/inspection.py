"""Signs what sidecars show their own applications in place of the hosts that their workloads inspect.

Rules:

1. Nothing is signed for a workload that inspects nothing, and never for another host than its own; the inventory says
   which these are, and the sidecar's certificate whose they are.
2. The root is made when it is first needed. ``STATE_DIR/ca/inspection.pem`` holds it with its key,
   ``STATE_DIR/inspection-root.pem`` what applications have to trust. It is no root of the mesh.
3. Every signature is an audit entry, written before the certificate is handed out.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from certs.ca_files import read_private, write_private
from certs.certificate import pem_text
from certs.errors import AuthorityError
from certs.inspection import InspectionAuthority
from certs.issue import read_csr
from certs.keys import public_bytes
from controller.errors import InvalidRequest
from controller.issuer import Attestations, check_pace
from controller.keyring import CA_DIRECTORY
from controller.signings import Renewals
from graph.model import Instance

log = logging.getLogger("hedgerow.inspection")

AUTHORITY_FILE = "inspection.pem"
ROOT_FILE = "inspection-root.pem"
#: Seconds after which an instance that had several in a row may have one more.
PACE = 360.0


class InspectionIssuer:
    """Decides who may stand in for which hosts.

    :param clock: seconds since the epoch
    """

    def __init__(self, state_dir: Path, trust_domain: str, engine: Attestations, clock: Callable[[], float]) -> None:
        self._state_dir = state_dir
        self._trust_domain = trust_domain
        self._engine = engine
        self._clock = clock
        self._authority: InspectionAuthority | None = None
        self._opening = asyncio.Lock()
        self._renewals = Renewals(PACE)

    async def sign(self, csr_der: bytes, instance: Instance) -> tuple[tuple[bytes, bytes], tuple[str, ...]]:
        """A signing certificate for an instance that proved who it is, its root, and the hosts that it is for.

        :raises certs.errors.InvalidCsr: see :func:`certs.issue.read_csr`
        :raises InvalidRequest: when the workload inspects nothing
        :raises controller.issuer.Throttled: when it asks without end
        :raises AuthorityError: when the root is damaged, or can not be written
        """
        key = read_csr(csr_der)
        ref = instance.workload
        workload = self._engine.view.inventory.workloads.get(ref)
        hosts = tuple(sorted({one.host for one in workload.inspects})) if workload is not None else ()
        if not hosts:
            raise InvalidRequest(
                f"{ref} inspects nothing", field="inspects", remedy="name its hosts in the inventory first"
            )
        check_pace(self._renewals, instance, self._clock())
        authority = await self._opened()
        chain = authority.sign(csr_der, str(ref), hosts, self._clock())
        await self._engine.record(
            f"sidecar:{ref.namespace}/{instance.name}",
            "certificate.inspection",
            str(ref),
            {
                "instance": instance.name,
                "hosts": list(hosts),
                "public_key_sha256": hashlib.sha256(public_bytes(key)).hexdigest(),
            },
        )
        return chain, hosts

    async def _opened(self) -> InspectionAuthority:
        async with self._opening:
            if self._authority is None:
                self._authority = await asyncio.to_thread(self._open)
            return self._authority

    def _open(self) -> InspectionAuthority:
        path = self._state_dir / CA_DIRECTORY / AUTHORITY_FILE
        pem = read_private(path)
        if pem is not None:
            authority = InspectionAuthority.load(pem)
        else:
            authority = InspectionAuthority.create(self._trust_domain, self._clock())
        try:
            if pem is None:
                write_private(path, authority.dump())
                log.info("a root for egress inspection was made: %s", self._state_dir / ROOT_FILE)
            public = self._state_dir / ROOT_FILE
            public.write_text(pem_text([authority.root_der]), encoding="ascii")
        except OSError as error:
            raise AuthorityError(f"{path}: cannot be written: {error.strerror}") from None
        return authority
