"""What JSON can say where a pod is expected, in the words that the injector looks for."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = [
    "name",
    "containers",
    "initContainers",
    "volumes",
    "metadata",
    "spec",
    "annotations",
    "labels",
    "ports",
    "livenessProbe",
    "httpGet",
    "port",
    "path",
    "containerPort",
    "securityContext",
    "runAsUser",
    "projected",
    "sources",
    "hedgerow.dev/injected",
    "hedgerow.dev/capture",
    "volumeMounts",
    "capabilities",
    "add",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["http", "1337", "enabled"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)
