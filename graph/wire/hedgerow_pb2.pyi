from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InspectionRequest(_message.Message):
    __slots__ = ("csr_der",)
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    csr_der: bytes
    def __init__(self, csr_der: _Optional[bytes] = ...) -> None: ...

class InspectionResponse(_message.Message):
    __slots__ = ("chain_der", "hosts")
    CHAIN_DER_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    chain_der: _containers.RepeatedScalarFieldContainer[bytes]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, chain_der: _Optional[_Iterable[bytes]] = ..., hosts: _Optional[_Iterable[str]] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("csr_der", "join_token", "service_account_token", "instance")
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    JOIN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    csr_der: bytes
    join_token: str
    service_account_token: str
    instance: str
    def __init__(self, csr_der: _Optional[bytes] = ..., join_token: _Optional[str] = ..., service_account_token: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class SignResponse(_message.Message):
    __slots__ = ("chain_der", "bundle", "spiffe_id", "instance", "workload")
    CHAIN_DER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    chain_der: _containers.RepeatedScalarFieldContainer[bytes]
    bundle: TrustBundle
    spiffe_id: str
    instance: str
    workload: str
    def __init__(self, chain_der: _Optional[_Iterable[bytes]] = ..., bundle: _Optional[_Union[TrustBundle, _Mapping]] = ..., spiffe_id: _Optional[str] = ..., instance: _Optional[str] = ..., workload: _Optional[str] = ...) -> None: ...

class TrustBundle(_message.Message):
    __slots__ = ("trust_domain", "sequence", "roots_der")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROOTS_DER_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    sequence: int
    roots_der: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, trust_domain: _Optional[str] = ..., sequence: _Optional[int] = ..., roots_der: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FlowBatch(_message.Message):
    __slots__ = ("boot_id", "sequence", "policy_version", "flows", "shed_flows")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    SHED_FLOWS_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    sequence: int
    policy_version: int
    flows: _containers.RepeatedCompositeFieldContainer[Flow]
    shed_flows: int
    def __init__(self, boot_id: _Optional[str] = ..., sequence: _Optional[int] = ..., policy_version: _Optional[int] = ..., flows: _Optional[_Iterable[_Union[Flow, _Mapping]]] = ..., shed_flows: _Optional[int] = ...) -> None: ...

class FlowAck(_message.Message):
    __slots__ = ("boot_id", "sequence")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    sequence: int
    def __init__(self, boot_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Flow(_message.Message):
    __slots__ = ("source", "destination", "port", "protocol", "direction", "reporter", "verified", "verdict", "pending", "reason", "rule_id", "operation", "source_identity", "destination_identity", "connections", "failed", "bytes_sent", "bytes_received", "first_seen", "last_seen", "requests")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    REPORTER_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    source: str
    destination: str
    port: int
    protocol: str
    direction: str
    reporter: str
    verified: bool
    verdict: str
    pending: str
    reason: str
    rule_id: str
    operation: str
    source_identity: str
    destination_identity: str
    connections: int
    failed: int
    bytes_sent: int
    bytes_received: int
    first_seen: float
    last_seen: float
    requests: int
    def __init__(self, source: _Optional[str] = ..., destination: _Optional[str] = ..., port: _Optional[int] = ..., protocol: _Optional[str] = ..., direction: _Optional[str] = ..., reporter: _Optional[str] = ..., verified: _Optional[bool] = ..., verdict: _Optional[str] = ..., pending: _Optional[str] = ..., reason: _Optional[str] = ..., rule_id: _Optional[str] = ..., operation: _Optional[str] = ..., source_identity: _Optional[str] = ..., destination_identity: _Optional[str] = ..., connections: _Optional[int] = ..., failed: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., first_seen: _Optional[float] = ..., last_seen: _Optional[float] = ..., requests: _Optional[int] = ...) -> None: ...

class PolicyRequest(_message.Message):
    __slots__ = ("hello", "ack", "nack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    hello: PolicyHello
    ack: PolicyAck
    nack: PolicyNack
    def __init__(self, hello: _Optional[_Union[PolicyHello, _Mapping]] = ..., ack: _Optional[_Union[PolicyAck, _Mapping]] = ..., nack: _Optional[_Union[PolicyNack, _Mapping]] = ...) -> None: ...

class PolicyHello(_message.Message):
    __slots__ = ("boot_id", "held_version", "software")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    held_version: int
    software: str
    def __init__(self, boot_id: _Optional[str] = ..., held_version: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class PolicyAck(_message.Message):
    __slots__ = ("nonce", "version")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    version: int
    def __init__(self, nonce: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class PolicyNack(_message.Message):
    __slots__ = ("nonce", "version", "error")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    version: int
    error: str
    def __init__(self, nonce: _Optional[str] = ..., version: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class PolicyPush(_message.Message):
    __slots__ = ("nonce", "snapshot")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    snapshot: SignedSnapshot
    def __init__(self, nonce: _Optional[str] = ..., snapshot: _Optional[_Union[SignedSnapshot, _Mapping]] = ...) -> None: ...

class SignedSnapshot(_message.Message):
    __slots__ = ("payload", "signature", "signer_chain_der")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_CHAIN_DER_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    signer_chain_der: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signer_chain_der: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("workload", "trust_domain", "version", "inbound_mode", "outbound_mode", "inbound_tls", "rules", "issued_at", "protocols", "inspects")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INBOUND_MODE_FIELD_NUMBER: _ClassVar[int]
    OUTBOUND_MODE_FIELD_NUMBER: _ClassVar[int]
    INBOUND_TLS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    INSPECTS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    trust_domain: str
    version: int
    inbound_mode: str
    outbound_mode: str
    inbound_tls: str
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    issued_at: float
    protocols: _containers.RepeatedCompositeFieldContainer[PortProtocol]
    inspects: _containers.RepeatedCompositeFieldContainer[InspectedHost]
    def __init__(self, workload: _Optional[str] = ..., trust_domain: _Optional[str] = ..., version: _Optional[int] = ..., inbound_mode: _Optional[str] = ..., outbound_mode: _Optional[str] = ..., inbound_tls: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., issued_at: _Optional[float] = ..., protocols: _Optional[_Iterable[_Union[PortProtocol, _Mapping]]] = ..., inspects: _Optional[_Iterable[_Union[InspectedHost, _Mapping]]] = ...) -> None: ...

class InspectedHost(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class PortProtocol(_message.Message):
    __slots__ = ("port", "app_protocol")
    PORT_FIELD_NUMBER: _ClassVar[int]
    APP_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    port: int
    app_protocol: str
    def __init__(self, port: _Optional[int] = ..., app_protocol: _Optional[str] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("id", "source", "destination", "ports", "protocol", "operations", "effect", "origin", "owner", "reason", "expires_at", "evidence", "essential")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    ESSENTIAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    source: Selector
    destination: Selector
    ports: _containers.RepeatedCompositeFieldContainer[PortRange]
    protocol: str
    operations: _containers.RepeatedScalarFieldContainer[str]
    effect: str
    origin: str
    owner: str
    reason: str
    expires_at: float
    evidence: _containers.RepeatedScalarFieldContainer[str]
    essential: bool
    def __init__(self, id: _Optional[str] = ..., source: _Optional[_Union[Selector, _Mapping]] = ..., destination: _Optional[_Union[Selector, _Mapping]] = ..., ports: _Optional[_Iterable[_Union[PortRange, _Mapping]]] = ..., protocol: _Optional[str] = ..., operations: _Optional[_Iterable[str]] = ..., effect: _Optional[str] = ..., origin: _Optional[str] = ..., owner: _Optional[str] = ..., reason: _Optional[str] = ..., expires_at: _Optional[float] = ..., evidence: _Optional[_Iterable[str]] = ..., essential: _Optional[bool] = ...) -> None: ...

class Selector(_message.Message):
    __slots__ = ("namespace", "workload", "service_account", "cidr", "host", "outside")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    CIDR_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    workload: str
    service_account: str
    cidr: str
    host: str
    outside: bool
    def __init__(self, namespace: _Optional[str] = ..., workload: _Optional[str] = ..., service_account: _Optional[str] = ..., cidr: _Optional[str] = ..., host: _Optional[str] = ..., outside: _Optional[bool] = ...) -> None: ...

class PortRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("address", "port", "protocol")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    protocol: str
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., protocol: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("target", "remove")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    target: ResolveRequest
    remove: bool
    def __init__(self, target: _Optional[_Union[ResolveRequest, _Mapping]] = ..., remove: _Optional[bool] = ...) -> None: ...

class Destination(_message.Message):
    __slots__ = ("address", "port", "protocol", "workload", "service", "meshed", "endpoints", "version")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    MESHED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    protocol: str
    workload: str
    service: str
    meshed: bool
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    version: int
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., protocol: _Optional[str] = ..., workload: _Optional[str] = ..., service: _Optional[str] = ..., meshed: _Optional[bool] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., version: _Optional[int] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("address", "port", "instance", "identity", "ready", "transport", "workload")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    instance: str
    identity: str
    ready: bool
    transport: str
    workload: str
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., instance: _Optional[str] = ..., identity: _Optional[str] = ..., ready: _Optional[bool] = ..., transport: _Optional[str] = ..., workload: _Optional[str] = ...) -> None: ...

class TapCommand(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: TapStart
    stop: TapStop
    def __init__(self, start: _Optional[_Union[TapStart, _Mapping]] = ..., stop: _Optional[_Union[TapStop, _Mapping]] = ...) -> None: ...

class TapStart(_message.Message):
    __slots__ = ("id", "seconds", "source", "ports", "operation", "status_first", "status_last", "bodies", "body_bytes", "events_per_second", "count")
    ID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIRST_FIELD_NUMBER: _ClassVar[int]
    STATUS_LAST_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    id: str
    seconds: float
    source: str
    ports: _containers.RepeatedScalarFieldContainer[int]
    operation: str
    status_first: int
    status_last: int
    bodies: bool
    body_bytes: int
    events_per_second: int
    count: int
    def __init__(self, id: _Optional[str] = ..., seconds: _Optional[float] = ..., source: _Optional[str] = ..., ports: _Optional[_Iterable[int]] = ..., operation: _Optional[str] = ..., status_first: _Optional[int] = ..., status_last: _Optional[int] = ..., bodies: _Optional[bool] = ..., body_bytes: _Optional[int] = ..., events_per_second: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TapStop(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class TapEvent(_message.Message):
    __slots__ = ("hello", "exchange", "ended")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    hello: TapHello
    exchange: TapExchange
    ended: TapEnded
    def __init__(self, hello: _Optional[_Union[TapHello, _Mapping]] = ..., exchange: _Optional[_Union[TapExchange, _Mapping]] = ..., ended: _Optional[_Union[TapEnded, _Mapping]] = ...) -> None: ...

class TapHello(_message.Message):
    __slots__ = ("boot_id",)
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    def __init__(self, boot_id: _Optional[str] = ...) -> None: ...

class TapEnded(_message.Message):
    __slots__ = ("id", "error", "shed")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    id: str
    error: str
    shed: int
    def __init__(self, id: _Optional[str] = ..., error: _Optional[str] = ..., shed: _Optional[int] = ...) -> None: ...

class TapExchange(_message.Message):
    __slots__ = ("id", "at", "source", "source_address", "destination", "port", "operation", "protocol", "method", "path", "host", "status", "grpc_status", "verdict", "pending", "reason", "rule_id", "seconds", "request", "response", "shed")
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GRPC_STATUS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    id: str
    at: float
    source: str
    source_address: str
    destination: str
    port: int
    operation: str
    protocol: str
    method: str
    path: str
    host: str
    status: int
    grpc_status: int
    verdict: str
    pending: str
    reason: str
    rule_id: str
    seconds: float
    request: TapMessage
    response: TapMessage
    shed: int
    def __init__(self, id: _Optional[str] = ..., at: _Optional[float] = ..., source: _Optional[str] = ..., source_address: _Optional[str] = ..., destination: _Optional[str] = ..., port: _Optional[int] = ..., operation: _Optional[str] = ..., protocol: _Optional[str] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., host: _Optional[str] = ..., status: _Optional[int] = ..., grpc_status: _Optional[int] = ..., verdict: _Optional[str] = ..., pending: _Optional[str] = ..., reason: _Optional[str] = ..., rule_id: _Optional[str] = ..., seconds: _Optional[float] = ..., request: _Optional[_Union[TapMessage, _Mapping]] = ..., response: _Optional[_Union[TapMessage, _Mapping]] = ..., shed: _Optional[int] = ...) -> None: ...

class TapMessage(_message.Message):
    __slots__ = ("fields", "trailers", "bytes", "body", "withheld")
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    TRAILERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedCompositeFieldContainer[TapField]
    trailers: _containers.RepeatedCompositeFieldContainer[TapField]
    bytes: int
    body: bytes
    withheld: str
    def __init__(self, fields: _Optional[_Iterable[_Union[TapField, _Mapping]]] = ..., trailers: _Optional[_Iterable[_Union[TapField, _Mapping]]] = ..., bytes: _Optional[int] = ..., body: _Optional[bytes] = ..., withheld: _Optional[str] = ...) -> None: ...

class TapField(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...
