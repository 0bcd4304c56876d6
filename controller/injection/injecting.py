"""The one function that injects, and its inverse: pure, the same for the webhook and for files.

``inject(inject(x)) == inject(x)`` and ``uninject(inject(x)) == x`` for every pod that was not injected: an injection
first undoes the one before (:mod:`.undoing`), so that containers which came later are treated like those that were
there, and an injected pod that somebody made up is checked like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from controller.injection import annotations as reading
from controller.injection import conflicts, names, prometheus, roots, shape
from controller.injection.annotations import Wishes
from controller.injection.documents import integer_or_none, mapping, mappings, texts
from controller.injection.errors import InjectionRefused
from controller.injection.outcomes import Injected, Namespace, Outcome, PodSecurity, Refused, Skipped
from controller.injection.probes import MAX_PROBES, Application, Unsuited, performed, probes_of, rewritten
from controller.injection.settings import InjectionSettings, Resources, amount
from controller.injection.undoing import Record, Undone, empties_of, is_injected, merged_resources, undo

__all__ = ["Injected", "Namespace", "Outcome", "PodSecurity", "Refused", "Skipped", "inject", "uninject"]

#: Seconds that a plain sidecar goes on as before when its pod ends, and that are left when it has.
HOLD_SECONDS = 5
#: ``terminationGracePeriodSeconds`` where a pod says nothing.
GRACE_SECONDS = 30
#: Settings of a sidecar that are for capture alone, and what a sidecar without has in their place.
_OF_CAPTURE: Mapping[str, Any] = {
    "exclude_cidrs": [],
    "exclude_inbound_ports": [],
    "exclude_outbound_ports": [],
    "exit_with_application": False,
}


def inject(pod: Mapping[str, Any], namespace: Namespace, settings: InjectionSettings) -> Outcome:
    """What becomes of a pod, or of the template of one (``metadata`` and ``spec``).

    The argument stays as it is. Nothing is raised for anything that JSON can say.
    """
    try:
        return _inject(pod, namespace, settings)
    except InjectionRefused as error:
        return Refused(error)


def uninject(pod: Mapping[str, Any]) -> Outcome:
    """The pod as it was before it was injected."""
    try:
        return Injected(undo(pod).pod) if is_injected(pod) else Skipped("not-injected")
    except InjectionRefused as error:
        return Refused(error)


def _inject(pod: Mapping[str, Any], namespace: Namespace, settings: InjectionSettings) -> Outcome:
    metadata, spec = mapping(dict(pod), "metadata", "pod"), mapping(dict(pod), "spec", "pod")
    written = texts(metadata, "annotations", "metadata")
    if settings.excludes(namespace.name):
        return Skipped("namespace")
    if "kubernetes.io/config.mirror" in written:
        return Skipped("static-pod")
    if reading.asked(texts(metadata, "labels", "metadata"), written) == "disabled":
        return Skipped("disabled")
    if conflicts.is_windows(spec):
        return Skipped("windows", ("not injected: there is no sidecar for Windows",))
    if spec.get("hostNetwork") is True:
        problem = "not injected: hostNetwork shares the node's network, where a pod's connections can not be captured"
        return Skipped("host-network", (problem,))
    undone = undo(pod)
    wishes = reading.read(texts(mapping(undone.pod, "metadata", "pod"), "annotations", "metadata"), settings)
    return _Injection(undone, wishes, namespace, settings).perform()


class _Injection:
    """One pod on its way."""

    def __init__(self, undone: Undone, wishes: Wishes, namespace: Namespace, settings: InjectionSettings) -> None:
        self._settings = settings
        self._wishes = wishes
        self._before = undone
        self._pod = undone.pod  # a copy already
        self._spec = mapping(self._pod, "spec", "pod")
        self._record = Record(empties=empties_of(self._pod))
        self._warnings: list[str] = []
        self._capture = _captures(wishes, namespace, self._warnings)
        self._application = Application(dict(wishes.inbound))

    def perform(self) -> Injected:
        """Check, rewrite, add.

        :raises InjectionRefused: when the pod can not have a sidecar
        """
        if not mappings(self._spec, "containers", "spec"):
            raise InjectionRefused("missing", field="spec.containers", remedy="name a container")
        self._warnings += conflicts.check(self._spec, self._settings, capture=self._capture)
        settings = {**self._wishes.sidecar, **self._mode(), **self._labels()}
        if inspected := self._inspected():
            settings["inspect"] = {**settings.get("inspect", {}), "egress": inspected}
        probes = self._rewrite_probes()
        if probes:
            settings["probes"] = probes
        merged = self._annotate()
        if merged:
            settings["merge_metrics"] = merged
        native = self._is_native()
        if not native:
            self._end_together(settings)
        if self._wishes.inspects:
            self._give_roots(init=native)
        plan = shape.Plan(
            self._capture,
            native,
            self._wishes.image or self._settings.image,
            settings,
            self._sidecar_resources(),
            bool(self._wishes.inspects),
            self._wishes.egress_roots,
        )
        self._add(plan)
        self._pod["metadata"]["annotations"][names.RECORD] = self._record.dump()
        return Injected(self._pod, tuple(self._warnings))

    def _mode(self) -> dict[str, Any]:
        if self._capture:
            if self._wishes.inbound or self._wishes.outbound:
                raise InjectionRefused(
                    "set with capture: redirect",
                    field=f"metadata.annotations[{names.PREFIX}explicit-inbound]",
                    remedy=f"remove it, or set {names.PREFIX}capture: explicit",
                )
            return {"capture": "redirect"}
        general, wished = self._settings.sidecar, self._wishes.sidecar
        if "udp" in wished or general.get("udp") == "drop":
            self._warnings.append("udp: nothing can be dropped without capture")
        for name in _OF_CAPTURE:
            if wished.get(name):
                raise InjectionRefused(
                    "nothing of this pod is captured that could be excluded",
                    field=f"metadata.annotations[{names.PREFIX}{name.replace('_', '-')}]",
                    remedy=f"remove it, or set {names.PREFIX}capture: redirect",
                )
        self._check_listeners()
        explicit = {
            "inbound": [
                {"listen": f"0.0.0.0:{listen}", "application": f"127.0.0.1:{application}"}
                for listen, application in self._wishes.inbound
            ],
            "outbound": [
                {"listen": f"127.0.0.1:{listen}", "destination": destination}
                for listen, destination in self._wishes.outbound
            ],
        }
        # what all pods are told may be for those with capture; a sidecar without would not start with it
        without = {name: standard for name, standard in _OF_CAPTURE.items() if name in general}
        return {"capture": "explicit", "explicit": explicit, "udp": "allow", **without}

    def _check_listeners(self) -> None:
        taken = set(names.EXPLICIT_PORTS)
        for kind, ports in (("inbound", self._wishes.inbound), ("outbound", self._wishes.outbound)):
            for listen, _ in ports:
                if listen in taken:
                    raise InjectionRefused(
                        f"port {listen} is taken",
                        field=f"metadata.annotations[{names.PREFIX}explicit-{kind}]",
                        remedy="write another port",
                    )
                taken.add(listen)

    def _inspected(self) -> dict[str, Any]:
        """How the sidecar reads what is said to hosts outside; empty when there are none."""
        wishes = self._wishes
        if not wishes.inspects:
            if wishes.egress_roots is not None:
                raise InjectionRefused(
                    "there is no host whose certificate it is for",
                    field=f"metadata.annotations[{names.PREFIX}egress-roots]",
                    remedy=f"set {names.INSPECT_EGRESS} too, or remove it",
                )
            return {}
        proxied = wishes.sidecar.get("dns", self._settings.sidecar.get("dns") or {}).get("proxy")
        if not self._capture or proxied is False:
            raise InjectionRefused(
                "hosts are known by answers of DNS, which the sidecar of this pod does not see",
                field=f"metadata.annotations[{names.INSPECT_EGRESS}]",
                remedy="remove it, or have the pod's connections and DNS captured",
            )
        made: dict[str, Any] = {"directory": names.ROOTS_DIRECTORY, "hosts": [str(one) for one in wishes.inspects]}
        if wishes.egress_roots is not None:
            made["roots"] = f"{names.EGRESS_ROOTS_DIRECTORY}/{names.EGRESS_ROOTS_FILE}"
        return made

    def _give_roots(self, *, init: bool) -> None:
        """Let the application's containers trust what its sidecar shows them.

        :param init: also those that run before the others, when the sidecar is there by then
        """
        for part in ("initContainers", "containers") if init else ("containers",):
            for index, container in enumerate(mappings(self._spec, part, "spec")):
                added = roots.give(container, f"spec.{part}[{index}]", self._warnings)
                self._record.roots[container["name"]] = added

    def _labels(self) -> dict[str, Any]:
        """What metrics say of the pod."""
        labels = texts(mapping(self._pod, "metadata", "pod"), "labels", "metadata")
        found = {
            "app": labels.get("app.kubernetes.io/name") or labels.get("app", ""),
            "version": labels.get("app.kubernetes.io/version") or labels.get("version", ""),
            "cluster": self._settings.cluster,
        }
        metrics = {name: text for name, text in found.items() if text}
        return {"metrics": metrics} if metrics else {}

    def _rewrite_probes(self) -> list[dict[str, Any]]:
        if not self._wishes.rewrite_probes:
            return []
        entries: list[dict[str, Any]] = []
        for where, container in conflicts.containers_of(self._spec):
            name = container["name"]
            self._warn_of_hooks(name, mapping(container, "lifecycle", where))
            for kind, probe in list(probes_of(container, where)):
                try:
                    entries.append(performed(container, kind, probe, self._application, where))
                except Unsuited as reason:
                    self._warnings.append(f"{kind} of container {name} stays as it is: {reason}")
                    continue
                self._record.probes.setdefault(name, {})[kind] = copy.deepcopy(probe)
                container[kind] = rewritten(name, kind, probe)
        if len(entries) > MAX_PROBES:
            raise InjectionRefused(
                f"{len(entries)} probes that the sidecar would have to perform",
                field="spec.containers",
                remedy=f"keep to {MAX_PROBES}, or annotate the pod with {names.PREFIX}rewrite-probes: false",
            )
        return entries

    def _warn_of_hooks(self, name: str, lifecycle: Mapping[str, Any]) -> None:
        for hook in ("postStart", "preStop"):
            action = lifecycle.get(hook)
            if isinstance(action, Mapping) and ("httpGet" in action or "tcpSocket" in action):
                self._warnings.append(
                    f"{hook} of container {name} comes from the kubelet, without an identity: denied in strict mode"
                )

    def _annotate(self) -> dict[str, Any]:
        """Annotations for people and scrapers; returns what the sidecar fetches from the application."""
        metadata = self._pod.get("metadata")
        if not isinstance(metadata, dict):
            metadata = self._pod["metadata"] = {}
        if not isinstance(metadata.get("annotations"), dict):
            metadata["annotations"] = {}
        written = metadata["annotations"]
        fetched: dict[str, Any] = {}
        changes: dict[str, str] = {}
        if self._wishes.merge_metrics:
            fetched, changes = prometheus.merged(written, self._application, self._warnings)
        if names.DEFAULT_CONTAINER not in written:
            changes[names.DEFAULT_CONTAINER] = self._spec["containers"][0]["name"]
        for name, value in changes.items():
            self._record.annotations[name] = (value, written.get(name))
            written[name] = value
        return fetched

    def _is_native(self) -> bool:
        settings, wished = self._settings, self._wishes.native
        possible = settings.knows_native
        if wished and not possible:
            self._warnings.append("native-sidecar: this cluster has none; the sidecar is a plain container")
        native = possible and (wished if wished is not None else settings.native_sidecar and self._capture)
        if not native:
            self._warn_of_plain(possible)
        return native

    def _warn_of_plain(self, possible: bool) -> None:
        if self._spec.get("restartPolicy") in ("OnFailure", "Never"):
            remedy = f"annotate the pod with {names.PREFIX}native-sidecar: true, or " if possible else ""
            self._warnings.append(
                f"a plain sidecar keeps this pod from completing; {remedy}end it with "
                "POST http://127.0.0.1:15000/quitquitquit"
            )
        if self._capture and self._spec.get("initContainers"):
            self._warnings.append("init containers run before a plain sidecar and have no network; use a native one")

    def _end_together(self, settings: dict[str, Any]) -> None:
        """A plain sidecar hears of the pod's end when the application does, and has to stay until that has ended."""
        given = integer_or_none(self._spec.get("terminationGracePeriodSeconds"))
        grace = GRACE_SECONDS if given is None else given
        hold = min(HOLD_SECONDS, max(grace - 1, 0))
        defaults: dict[str, Any] = {"hold_seconds": hold, "drain_seconds": max(grace - hold - HOLD_SECONDS, 0)}
        if self._capture:
            defaults["exit_with_application"] = True
        for name, value in defaults.items():
            if name not in self._settings.sidecar:
                settings.setdefault(name, value)

    def _sidecar_resources(self) -> Resources:
        ours, wished = self._settings.resources, self._wishes.resources
        resources = Resources({**ours.requests, **wished.requests}, {**ours.limits, **wished.limits})
        for name, request in resources.requests.items():
            limit = resources.limits.get(name)
            if limit is not None and amount(request) > amount(limit):
                raise InjectionRefused(
                    f"{request} is more than the limit, {limit}",
                    field=f"metadata.annotations[{names.PREFIX}{name}-request]",
                    remedy=f"set {names.PREFIX}{name}-limit too",
                )
        return resources

    def _add(self, plan: shape.Plan) -> None:
        settings, spec = self._settings, self._spec

        def resources(name: str, wanted: Resources) -> dict[str, Any]:
            return merged_resources(wanted.document(), self._before.resources.get(name, {}))

        first: list[dict[str, Any]] = []
        if plan.capture:
            small = settings.capture_resources
            first.append(shape.capture(plan, settings, resources(names.CAPTURE, small)))
            if settings.validation:
                first.append(shape.validation(plan, settings, resources(names.VALIDATION, small)))
        container = shape.sidecar(plan, settings, resources(names.SIDECAR, plan.resources))
        if plan.native:
            first.append(container)
        else:
            spec["containers"] = [container, *spec["containers"]]
        if first:
            spec["initContainers"] = [*first, *(spec.get("initContainers") or [])]
        spec["volumes"] = [*(spec.get("volumes") or []), *shape.volumes(plan, settings)]


def _captures(wishes: Wishes, namespace: Namespace, warnings: list[str]) -> bool:
    """Whether connections are redirected.

    :raises InjectionRefused: when they can be neither redirected nor come to declared ports
    """
    declared = bool(wishes.inbound or wishes.outbound)
    confined = namespace.enforces is not PodSecurity.PRIVILEGED
    mode = wishes.capture or ("explicit" if confined else "redirect")
    if mode == "redirect":
        if confined:
            warnings.append(
                f"namespace {namespace.name} enforces Pod Security {namespace.enforces}, which does not permit the "
                f"container {names.CAPTURE} unless this pod is exempt"
            )
        return True
    if declared:
        return False
    if wishes.capture:
        raise InjectionRefused(
            "explicit mode without ports",
            field=f"metadata.annotations[{names.PREFIX}capture]",
            remedy=f"set {names.PREFIX}explicit-inbound or {names.PREFIX}explicit-outbound",
        )
    raise InjectionRefused(
        f"namespace {namespace.name} enforces Pod Security {namespace.enforces}, which does not permit to redirect "
        "connections, and the pod declares no ports",
        field="metadata.annotations",
        remedy=f"declare {names.PREFIX}explicit-inbound or -outbound, or set {names.PREFIX}capture: redirect where the "
        "pod is exempt from Pod Security (docs/injection.md)",
    )
