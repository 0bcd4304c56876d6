"""Where the custom resources are in the API, and the names that we put on what is ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.kube.kinds import Resource

GROUP = "hedgerow.dev"
VERSION = "v1alpha1"

ACCESS_OVERRIDES = Resource(GROUP, VERSION, "accessoverrides", "AccessOverride")
SEGMENTATION_MODES = Resource(GROUP, VERSION, "segmentationmodes", "SegmentationMode")
LEARNED_POLICIES = Resource(GROUP, VERSION, "learnedpolicies", "LearnedPolicy")

#: On everything that the controller makes.
OURS = {"app.kubernetes.io/managed-by": "hedgerow", "hedgerow.dev/owned-by": "controller"}
#: Who asked for a resource that we made.
AUTHOR_ANNOTATION = "hedgerow.dev/created-by"


def is_ours(document: Mapping[str, Any]) -> bool:
    """Whether it carries the labels of what the controller makes."""
    labels = (document.get("metadata") or {}).get("labels") or {}
    return all(labels.get(key) == value for key, value in OURS.items())
