"""Destinations and their endpoints, as the directory answers with them."""

from __future__ import annotations

from collections.abc import Callable

from graph.directory import Destination, Endpoint, Transport
from graph.errors import DecodeError
from graph.model import Protocol
from graph.wire import hedgerow_pb2 as pb
from graph.wire.bounds import (
    MAX_ENDPOINTS,
    MAX_NAME,
    MAX_VERSION,
    at_most,
    build,
    each,
    read_address,
    read_enum,
    read_identity,
    read_port,
    read_text,
    read_workload,
    refuse_unknown_fields,
)


def destination_to_message(destination: Destination) -> pb.Destination:
    """:raises InvalidValue: when a value does not fit its field"""
    return build(
        "destination",
        lambda: pb.Destination(
            address=destination.address,
            port=destination.port,
            protocol=destination.protocol.value,
            workload=str(destination.workload) if destination.workload is not None else "",
            service=destination.service,
            meshed=destination.meshed,
            endpoints=[endpoint_to_message(endpoint) for endpoint in destination.endpoints],
            version=destination.version,
        ),
    )


def destination_from_message(message: pb.Destination, before: Destination | None = None) -> Destination:
    """
    :param before: what was answered before, which was looked at then: an endpoint that is still the same stays the same
        object, and of ten thousand only those are read that are new
    :raises DecodeError: naming the field, such as ``endpoints[0].address``
    """
    refuse_unknown_fields(message)
    workload = read_workload(message.workload, "workload") if message.workload else None
    if message.meshed and (workload is None or workload.is_external):
        raise DecodeError("set for something that is not a workload", "meshed")
    if message.version > MAX_VERSION:
        raise DecodeError(f"{message.version} is not a version", "version")
    at_most(message.endpoints, MAX_ENDPOINTS, "endpoints")
    return Destination(
        address=read_address(message.address, "address"),
        port=read_port(message.port, "port"),
        protocol=read_enum(Protocol, message.protocol, "protocol"),
        workload=workload,
        service=read_text(message.service, "service", MAX_NAME),
        meshed=message.meshed,
        endpoints=each(_reader(before), message.endpoints, "endpoints"),
        version=message.version,
    )


def endpoint_to_message(endpoint: Endpoint) -> pb.Endpoint:
    """Made within :func:`destination_to_message`, which says what does not fit."""
    return pb.Endpoint(
        address=endpoint.address,
        port=endpoint.port,
        instance=endpoint.instance,
        identity=endpoint.identity,
        ready=endpoint.ready,
        transport=endpoint.transport.value,
        workload=str(endpoint.workload) if endpoint.workload is not None else "",
    )


def _reader(before: Destination | None) -> Callable[[pb.Endpoint], Endpoint]:
    """What reads an endpoint, or knows it."""
    if before is None or not before.endpoints:
        return endpoint_from_message
    known = {endpoint.key: endpoint for endpoint in before.endpoints}

    def read(message: pb.Endpoint) -> Endpoint:
        endpoint = known.get((message.address, message.port, message.identity))
        if (
            endpoint is None
            or message.instance != endpoint.instance
            or message.ready is not endpoint.ready
            or message.transport != endpoint.transport.value
            or message.workload != (str(endpoint.workload) if endpoint.workload is not None else "")
        ):
            return endpoint_from_message(message)
        refuse_unknown_fields(message)
        return endpoint

    return read


def endpoint_from_message(message: pb.Endpoint) -> Endpoint:
    """:raises DecodeError: naming the field"""
    refuse_unknown_fields(message)
    workload = read_workload(message.workload, "workload") if message.workload else None
    if message.identity and workload is not None and workload.is_external:
        raise DecodeError("set for something that is not a workload", "identity")
    return Endpoint(
        address=read_address(message.address, "address"),
        port=read_port(message.port, "port"),
        instance=read_text(message.instance, "instance", MAX_NAME),
        identity=read_identity(message.identity, "identity"),
        ready=message.ready,
        transport=read_enum(Transport, message.transport, "transport"),
        workload=workload,
    )
