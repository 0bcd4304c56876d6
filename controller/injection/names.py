"""The names that an injected pod carries, and the ports that are its sidecar's."""

from __future__ import annotations

from typing import Final

#: What stands before the names of our labels and annotations.
PREFIX: Final = "hedgerow.dev/"
#: Label of a namespace (``enabled``), label or annotation of a pod (``enabled``, ``disabled``).
INJECTION: Final = f"{PREFIX}injection"
#: Annotation of an injected pod: what it takes to undo the injection. Never believed, see :mod:`.undoing`.
RECORD: Final = f"{PREFIX}injected"
#: Annotations that the controller reads too: of pods, services and namespaces; of pods; of namespaces.
OPAQUE_PORTS: Final = f"{PREFIX}opaque-ports"
INSPECT_EGRESS: Final = f"{PREFIX}inspect-egress"
INSPECTABLE_HOSTS: Final = f"{PREFIX}inspectable-hosts"

SIDECAR: Final = "hedgerow-sidecar"
CAPTURE: Final = "hedgerow-capture"
VALIDATION: Final = "hedgerow-validation"
CONTAINERS: Final = (SIDECAR, CAPTURE, VALIDATION)

TOKEN_VOLUME: Final = "hedgerow-token"  # noqa: S105  # the name of a volume
TRUST_VOLUME: Final = "hedgerow-trust"
STATE_VOLUME: Final = "hedgerow-state"
#: What the application has to trust, where its sidecar reads what it says to hosts outside.
ROOTS_VOLUME: Final = "hedgerow-roots"
#: What those hosts' own certificates have to lead to, where that is not what the system trusts.
EGRESS_ROOTS_VOLUME: Final = "hedgerow-egress-roots"
VOLUMES: Final = (TOKEN_VOLUME, TRUST_VOLUME, STATE_VOLUME, ROOTS_VOLUME, EGRESS_ROOTS_VOLUME)

TOKEN_DIRECTORY: Final = "/var/run/secrets/hedgerow/token"  # noqa: S105  # a path
TRUST_DIRECTORY: Final = "/var/run/secrets/hedgerow/trust"
ROOTS_DIRECTORY: Final = "/var/run/secrets/hedgerow/roots"
EGRESS_ROOTS_DIRECTORY: Final = "/var/run/secrets/hedgerow/egress-roots"
EGRESS_ROOTS_FILE: Final = "roots.pem"
STATE_MOUNT: Final = "/var/lib/hedgerow"
#: The mount itself belongs to root; the sidecar makes a directory of its own in it.
STATE_DIRECTORY: Final = f"{STATE_MOUNT}/state"
#: Where the API server puts its own token into every container that has nothing there yet.
API_TOKEN_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # a path

#: The ConfigMap that the controller keeps in every namespace with the label, and its key.
TRUST_CONFIG_MAP: Final = "hedgerow-trust"
TRUST_KEY: Final = "trust-bundle.pem"

SETTINGS_VARIABLE: Final = "HEDGEROW_SIDECAR"
DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"

#: The sidecar's user and group: what is not captured.
UID: Final = 1337
#: An ordinary user without any right, for the container that looks whether connections of such users are captured.
VALIDATION_UID: Final = 65534

STATS_PORT: Final = 15020
READY_PORT: Final = 15021
#: By what they are for. In explicit mode only the first two are taken.
PORTS: Final = {
    STATS_PORT: "metrics and probes",
    READY_PORT: "readiness",
    15000: "administration",
    15001: "outbound capture",
    15006: "inbound capture",
    15053: "DNS",
}
EXPLICIT_PORTS: Final = {port: PORTS[port] for port in (STATS_PORT, READY_PORT)}

#: Where no pod is ever injected, beside the namespace of Hedgerow itself.
SYSTEM_NAMESPACES: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})
