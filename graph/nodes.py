"""What the service graph keeps of one workload, or of something outside, and its view."""

from __future__ import annotations

from dataclasses import dataclass, field

from graph.model import Instance, Transport, Workload, WorkloadRef
from graph.views import NodeView


@dataclass(slots=True)
class Node:
    """Changed in place by the graph; whoever changes it sets ``view`` to None.

    :param workload: as the inventory has it; None when it does not
    :param instances: by namespace and name
    """

    ref: WorkloadRef
    workload: Workload | None = None
    identity: str = ""
    instances: dict[tuple[str, str], Instance] = field(default_factory=dict)
    view: NodeView | None = None

    def seen(self) -> NodeView:
        if self.view is None:
            workload = self.workload
            self.view = NodeView(
                ref=self.ref,
                kind=workload.kind if workload is not None else "External" if self.ref.is_external else "",
                meshed=workload.meshed if workload is not None else False,
                instances=len(self.instances),
                identity=self.identity,
                labels=workload.labels if workload is not None else (),
                transport=workload.transport if workload is not None else Transport.TUNNEL,
            )
        return self.view
