"""Small real implementations of the data path's contracts: a policy, a directory, a certificate and a list of flows."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.contexts import Contexts, client_context, server_context, verify_connection
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from certs.verify import verify_peer
from graph.directory import Destination
from graph.model import Connection, Direction, InspectedHost, Peer, Snapshot, WorkloadRef
from graph.policy import Decision, admit, decide
from sidecar.dataplane.contracts import Record, Request
from sidecar.errors import Unresolved

TRUST_DOMAIN = "hedgerow.test"
ALPN = ("hedgerow/1",)
#: Seconds that certificates live where a test waits for their end.
LIFE = 4.0


class HeldPolicy:
    """An authority over one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._changed: list[Callable[[], None]] = []

    @property
    def version(self) -> int:
        return self._snapshot.version

    @property
    def workload(self) -> WorkloadRef:
        return self._snapshot.workload

    def outbound(self, destination: Peer, port: int) -> Decision:
        return admit(self._snapshot, self._asked(destination, port, outbound=True), time.time())[0]

    def inbound(self, source: Peer, port: int) -> Decision:
        return admit(self._snapshot, self._asked(source, port), time.time())[0]

    def by_operation(self, peer: Peer, port: int, *, outbound: bool = False) -> bool:
        return admit(self._snapshot, self._asked(peer, port, outbound=outbound), time.time())[1]

    def operation(self, peer: Peer, port: int, operation: str, *, outbound: bool = False) -> Decision:
        return decide(self._snapshot, self._asked(peer, port, operation, outbound=outbound), time.time())

    def inspects(self, host: str, port: int) -> bool:
        return InspectedHost(host, port) in self._snapshot.inspects

    def protocol(self, port: int) -> str:
        return dict(self._snapshot.protocols).get(port, "")

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def apply(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        for changed in self._changed:
            changed()

    def _asked(self, peer: Peer, port: int, operation: str = "", *, outbound: bool = False) -> Connection:
        mine = Peer(self.workload, verified=True)
        ends = (mine, peer) if outbound else (peer, mine)
        direction = Direction.OUTBOUND if outbound else Direction.INBOUND
        return Connection(direction, *ends, port, operation=operation)


class HeldDirectory:
    """A directory whose answers are set by the test; the first question about an address is answered by ``resolve``."""

    def __init__(self, destinations: Iterable[Destination] = ()) -> None:
        self.known = {(destination.address, destination.port): destination for destination in destinations}
        self._asked: set[tuple[str, int]] = set()
        self._told: list[Callable[[str, int, Destination | None], None]] = []

    def subscribe(self, told: Callable[[str, int, Destination | None], None]) -> None:
        self._told.append(told)

    def change(self, destination: Destination) -> None:
        self.known[destination.address, destination.port] = destination
        for told in self._told:
            told(destination.address, destination.port, destination)

    def cached(self, address: str, port: int) -> Destination | None:
        return self.known.get((address, port)) if (address, port) in self._asked else None

    async def resolve(self, address: str, port: int) -> Destination:
        self._asked.add((address, port))
        try:
            return self.known[(address, port)]
        except KeyError:
            raise Unresolved(f"{address}:{port} is not known") from None


class HeldCredentials:
    """Credentials over one chain, replaced by ``renew``."""

    def __init__(
        self,
        identity: SpiffeId,
        chain_der: Sequence[bytes],
        key: ec.EllipticCurvePrivateKey,
        bundle: TrustBundle,
        not_after: float,
        alpn: Sequence[str] = ALPN,
    ) -> None:
        self._renewed: list[Callable[[], None]] = []
        self._alpn = alpn
        self._hold(identity, chain_der, key, bundle, not_after)

    def _hold(
        self,
        identity: SpiffeId,
        chain_der: Sequence[bytes],
        key: ec.EllipticCurvePrivateKey,
        bundle: TrustBundle,
        not_after: float,
    ) -> None:
        self.identity = identity
        self.leaf = chain_der[0]
        self.chain_der = tuple(chain_der)
        self.instance = instance_of(chain_der[0])
        self.not_after = not_after
        self._bundle = bundle
        self.mesh_context = Contexts(chain_der, key, bundle).get
        self.client_context: ssl.SSLContext = client_context(chain_der, key, bundle, alpn=self._alpn)
        self.server_context: ssl.SSLContext = server_context(chain_der, key, bundle, alpn=self._alpn)

    def renew(
        self, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle, not_after: float
    ) -> None:
        self._hold(self.identity, chain_der, key, bundle, not_after)
        for renewed in self._renewed:
            renewed()

    def verify_connection(self, session: ssl.SSLObject) -> SpiffeId:
        return verify_connection(session, self._bundle, time.time())

    def verify_certificates(self, certificates: Sequence[bytes], at: float) -> SpiffeId:
        return verify_peer(certificates[0], certificates[1:], self._bundle, at)

    def subscribe(self, renewed: Callable[[], None]) -> None:
        self._renewed.append(renewed)


def credentials(
    authority: CertificateAuthority,
    namespace: str,
    workload: str,
    *,
    instance: str | None = None,
    lifetime: float = 3600.0,
    alpn: Sequence[str] = ALPN,
) -> HeldCredentials:
    """Fresh credentials of one workload's first instance, or another."""
    identity = SpiffeId.for_workload(authority.trust_domain, namespace, "default", workload)
    key = new_key()
    name = f"{workload}-0" if instance is None else instance
    chain = authority.sign_workload(make_csr(key), identity, time.time(), lifetime, name)
    return HeldCredentials(identity, chain.chain_der, key, authority.bundle(), chain.not_after, alpn)


def renew(held: HeldCredentials, authority: CertificateAuthority, lifetime: float) -> None:
    """A newer certificate of the same instance, with a key of its own."""
    key = new_key()
    chain = authority.sign_workload(make_csr(key), held.identity, time.time(), lifetime, held.instance)
    held.renew(chain.chain_der, key, authority.bundle(), chain.not_after)


class FlowList:
    """A sink that keeps every record and refuses to be told twice."""

    def __init__(self) -> None:
        self.opened_records: list[Record] = []
        self.closed_records: list[Record] = []
        self.requests: list[Request] = []

    def opened(self, record: Record) -> None:
        assert not any(known is record for known in self.opened_records[-64:]), "opened twice"
        self.opened_records.append(record)

    def closed(self, record: Record) -> None:
        assert record.closed, "closed without the mark"
        assert not any(known is record for known in self.closed_records[-64:]), "closed twice"
        self.closed_records.append(record)

    def request(self, request: Request) -> None:
        self.requests.append(request)
