"""What a worker is told of the settings: what it needs to carry connections, and no file that holds a secret."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.directory_settings import DirectorySettings
from sidecar.inspect.settings import InspectSettings
from sidecar.path_settings import data_plane_settings
from sidecar.settings import Settings, Unsynced

#: Limits of the whole sidecar, of which each worker gets its part.
_SHARED = ("connections", "handshakes", "buffered_bytes")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker's.

    :param index: of this worker, from 0, of ``count``
    :param data_plane: with this worker's part of the limits that hold for the sidecar
    :param memory_limit: bytes that all workers together may use; 0: what the control group allows
    :param names: whether a DNS proxy knows names of addresses outside the mesh
    """

    index: int
    count: int
    instance: str
    trust_domain: str
    addresses: tuple[str, ...]
    unsynced: Unsynced
    data_plane: DataPlaneSettings
    memory_limit: int
    inspect: InspectSettings
    directory: DirectorySettings
    telemetry: bool
    report_interval: float
    report_flows: int
    series: int
    names: bool


def worker_settings(settings: Settings, index: int) -> WorkerSettings:
    """What worker ``index`` is told."""
    whole = data_plane_settings(settings)
    count = settings.workers
    parts = {name: -(-getattr(whole, name) // count) for name in _SHARED}
    return WorkerSettings(
        index=index,
        count=count,
        instance=settings.instance,
        trust_domain=settings.trust_domain,
        addresses=settings.addresses,
        unsynced=settings.unsynced,
        data_plane=dataclasses.replace(whole, **parts),
        memory_limit=whole.memory_limit,
        inspect=settings.inspect,
        directory=settings.directory,
        telemetry=settings.telemetry,
        report_interval=settings.report_interval,
        report_flows=settings.report_flows,
        series=settings.metrics.series,
        names=settings.dns_proxy,
    )
