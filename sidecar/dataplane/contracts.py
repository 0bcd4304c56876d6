"""What the data path asks of the rest of the sidecar, and nothing more.

The data path owns sockets, TLS and bytes. Who may talk to whom, who answers at an address, which certificate is in
force and what becomes of the counters is behind these protocols, implemented by ``sidecar.authority``,
``sidecar.directory``, ``sidecar.credentials`` and ``sidecar.flows``. All calls are made on the event loop's thread;
none of them blocks.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from certs.spiffe import SpiffeId
from graph.directory import Destination
from graph.model import Direction, Peer, WorkloadRef
from graph.policy import Decision


class Authority(Protocol):
    """Holds the snapshot and judges connections by it."""

    @property
    def version(self) -> int:
        """The version of the snapshot in force; 0 before the first."""

    @property
    def workload(self) -> WorkloadRef:
        """The workload that this sidecar belongs to."""

    def outbound(self, destination: Peer, port: int) -> Decision:
        """Judge the opening of a connection of our application to ``destination``; ``port`` is the destination
        instance's. Its operations are judged at the other end, unless that is outside the mesh."""

    def inbound(self, source: Peer, port: int) -> Decision:
        """Judge the opening of a connection to our application on ``port`` (:func:`graph.policy.admit`)."""

    def by_operation(self, peer: Peer, port: int, *, outbound: bool = False) -> bool:
        """Whether operations of that connection can come out differently from its opening. Then every operation has
        to be asked about, and what is no operation is asked about as the empty one.

        :param outbound: it is one of our application to ``peer``, which is outside the mesh; else ``peer`` calls us
        """

    def operation(self, peer: Peer, port: int, operation: str, *, outbound: bool = False) -> Decision:
        """Judge one operation (``GET /cart/{id}``) on a connection to our application, or of it to what is outside the
        mesh; empty: it is not known."""

    def inspects(self, host: str, port: int) -> bool:
        """Whether we may read, and have to, what our application says to ``host`` outside the mesh."""

    def protocol(self, port: int) -> str:
        """The ``appProtocol`` of our application's ``port``; empty when the inventory does not say."""

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called after every change that can alter a verdict: a new snapshot, a rule's expiry."""


class Directory(Protocol):
    """Knows who answers at an address."""

    def cached(self, address: str, port: int) -> Destination | None:
        """The answer held now, if any; keeps it watched."""

    async def resolve(self, address: str, port: int) -> Destination:
        """Ask the controller and keep watching.

        :raises sidecar.errors.Unresolved: when it did not answer in time; nothing is known, so nothing is allowed
        """

    def subscribe(self, told: Callable[[str, int, Destination | None], None]) -> None:
        """Have ``told`` called with every address, port and answer that is new, and None when it is watched no more."""


class Credentials(Protocol):
    """The certificate in force, as TLS contexts. A context is never changed; a renewal makes new ones.

    Both contexts require the peer's certificate, speak TLS 1.3 alone and check the chain against the trust bundle.
    ``client_context`` offers ALPN ``hedgerow/1``; ``server_context`` selects it when it is offered.
    """

    @property
    def client_context(self) -> ssl.SSLContext: ...

    @property
    def server_context(self) -> ssl.SSLContext: ...

    def mesh_context(self, *, server_side: bool, alpn: Sequence[str]) -> ssl.SSLContext:
        """The same for a connection with another mesh's proxy: it offers, or selects, ``alpn`` and not our own.

        Made when it is first asked for, and kept: ``alpn`` comes from a short list.
        """

    @property
    def identity(self) -> SpiffeId:
        """Our own SPIFFE ID."""

    @property
    def instance(self) -> str:
        """The replica that the certificate in force names; empty when it names none."""

    @property
    def not_after(self) -> float:
        """When the certificate in force ends, seconds since the epoch."""

    def verify_connection(self, session: ssl.SSLObject) -> SpiffeId:
        """Who the peer of a completed handshake is, by our own reading of every certificate that it sent.

        OpenSSL has accepted the chain; this is the stricter opinion, against the trust bundle in force now.

        :raises certs.errors.CertError: when it proves no identity of our trust domain
        """

    def verify_certificates(self, certificates: Sequence[bytes], at: float) -> SpiffeId:
        """Whom a handshake proves that was made before, against the trust bundle in force now.

        :param certificates: what the peer sent, in DER, its own first
        :param at: seconds since the epoch, when they have to be valid
        :raises certs.errors.CertError: when they prove no identity of our trust domain
        """

    def subscribe(self, renewed: Callable[[], None]) -> None:
        """Have ``renewed`` called after a new certificate or trust bundle came into force."""


class Taps(Protocol):
    """Knows which connections a person watches now."""

    def wants(self, port: int) -> bool:
        """Whether new connections to our application on ``port`` have to be inspected."""


class NoTaps:
    """Nobody watches."""

    def wants(self, port: int) -> bool:
        return False


class Names(Protocol):
    """Knows which names DNS has bound to an address outside the mesh."""

    def bound(self, address: str) -> Sequence[str]:
        """The names of ``address``, the one that was answered last first."""

    def began(self, address: str, host: str) -> None:
        """A connection uses this name, which stays bound until :meth:`ended` at least."""

    def ended(self, address: str, host: str) -> None: ...


class NoNames:
    """Nobody asks DNS through us."""

    def bound(self, address: str) -> Sequence[str]:
        return ()

    def began(self, address: str, host: str) -> None: ...
    def ended(self, address: str, host: str) -> None: ...


@dataclass(slots=True)
class Record:
    """One live connection's account. The data path adds to the counters, the flow tracker reads them.

    :param bytes_sent: bytes from source to destination so far; ``bytes_received`` the other way
    :param failed: it was allowed but never reached the application
    :param closed: no counter will change any more
    :param protocol: what was recognised on it: ``tcp``, ``tls``, ``http``, ``http2``, ``grpc``; empty: not looked for
    :param source_certificate: SHA-256 of the certificate that proved the source when its tunnel or connection began,
        hexadecimal; empty: none did, or it was proved elsewhere
    :param service: the service that our application asked for, as :attr:`graph.directory.Destination.service` names it
    :param request_messages: messages of gRPC from source to destination so far, where requests are read;
        ``response_messages`` the other way
    """

    direction: Direction
    source: Peer
    destination: Peer
    port: int
    decision: Decision
    opened_at: float
    source_identity: str = ""
    destination_identity: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    failed: bool = False
    closed: bool = False
    protocol: str = ""
    service: str = ""
    source_certificate: str = ""
    request_messages: int = 0
    response_messages: int = 0


@dataclass(slots=True)
class Request:
    """One operation that was judged, after its end. Nobody changes it; frozen, it would take seven times as long to
    make, which is a good part of what a request costs.

    :param record: the connection that carried it
    :param operation: method and templated path, as rules name it
    :param protocol: ``http``, ``http2`` or ``grpc``
    :param status: of the response, also of a refusal that we answered with; 0 when none came
    :param grpc_status: gRPC's own, from the trailers; -1 when there was none
    :param seconds: from the first byte of the request to the last of the response
    :param request_bytes: of head and body; also ``response_bytes``
    :param detail: why we answered in place of the application, in the word of ``x-hedgerow-reason``, where it is not
        the decision's reason alone; empty: we did not
    """

    record: Record
    operation: str
    decision: Decision
    protocol: str
    status: int
    seconds: float
    request_bytes: int
    response_bytes: int
    grpc_status: int = -1
    method: str = ""
    path: str = ""
    host: str = ""
    user_agent: str = ""
    request_id: str = ""
    detail: str = ""


class FlowSink(Protocol):
    """Takes one record for every connection, allowed or refused."""

    def opened(self, record: Record) -> None:
        """A connection was judged. A refused one arrives with ``closed`` set."""

    def closed(self, record: Record) -> None:
        """The connection ended; the record will not change any more."""

    def request(self, request: Request) -> None:
        """An operation ended, or was refused."""
