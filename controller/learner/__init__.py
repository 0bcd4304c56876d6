"""What is learned from flows, one edge at a time. The states and their rules are in :mod:`controller.learner.states`.

The engine calls, and nothing here keeps anything of its own::

    edge = observe(edges.get(flow.edge), flow, now)      # on every flow report; None: nothing to remember
    edge = step(edge, gate, now, destination_meshed=…)   # after that, and from time to time
    edge = approve(edge, owner, now)                     # when a person said so
    rule = rule_of(edge) if edge.allows else None
"""

from controller.learner.edge import LearnedEdge, Tally
from controller.learner.learning import Gate, Readiness, approve, observe, readiness, rule_of, step, waiting_for
from controller.learner.states import TRANSITIONS, EdgeEvent, EdgeState, after

__all__ = [
    "TRANSITIONS",
    "EdgeEvent",
    "EdgeState",
    "Gate",
    "LearnedEdge",
    "Readiness",
    "Tally",
    "after",
    "approve",
    "observe",
    "readiness",
    "rule_of",
    "step",
    "waiting_for",
]
