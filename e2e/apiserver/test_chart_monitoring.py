"""The chart's rules and dashboards, beside the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from controller.cluster_state import ClusterState
from controller.monitoring.metrics import ProcessState, page
from controller.view import View
from sidecar.metrics import istio, own

CHART = Path(__file__).parents[2] / "charts" / "hedgerow"


def exposed() -> set[str]:
    """The names of all metrics that controller and sidecars have."""
    process = ProcessState(0.0, 0, 0, 0.0, 0)
    lines = page(View("t"), "1", process, ClusterState()).splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    for module in (own, istio):
        names |= set(re.findall(r'"((?:hedgerow|istio)_[a-z_]+)"', Path(str(module.__file__)).read_text()))
    return names


def test_rules_and_dashboards_ask_for_metrics_that_are_there():
    known = exposed()
    texts = [(CHART / "files" / "rules.yaml").read_text()]
    boards = sorted((CHART / "files" / "dashboards").glob("*.json"))
    texts += [path.read_text() for path in boards]
    asked = {name for text in texts for name in re.findall(r"\b(?:hedgerow|istio|process)_[a-z_]+", text)}
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert len(asked) > 15
    assert asked <= known, f"nobody exposes {asked - known}"
    uids = [json.loads(path.read_text())["uid"] for path in boards]
    assert len(set(uids)) == len(boards) == 2
