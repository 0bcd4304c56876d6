"""What in a pod can not be beside a sidecar, or would get past it: refused; what only may: told to its author.

A pod's author can do much to the pod's own network (docs/escapes.md); what is refused here is what would do so by
accident or behind the back of whoever reads the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from controller.injection import names
from controller.injection.documents import integer_or_none, mapping, mappings, texts
from controller.injection.errors import InjectionRefused
from controller.injection.settings import InjectionSettings

#: Capabilities with which a container can take the capture rules away, or speak past them.
_NETWORK: Final = frozenset({"ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"})
#: Lists of containers of a pod.
LISTS: Final = ("initContainers", "containers", "ephemeralContainers")


def containers_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container of a pod, with its path.

    :raises InjectionRefused: when there is something else in the lists
    """
    for part in LISTS:
        for index, container in enumerate(mappings(spec, part, "spec")):
            yield f"spec.{part}[{index}]", container


def check(spec: Mapping[str, Any], settings: InjectionSettings, *, capture: bool) -> list[str]:
    """Look at a pod that is not injected yet.

    :returns: warnings
    :raises InjectionRefused: when it can not have a sidecar
    """
    warnings: list[str] = []
    pod_user = integer_or_none(mapping(spec, "securityContext", "spec").get("runAsUser"))
    for where, container in containers_of(spec):
        name = container.get("name")
        if not isinstance(name, str) or not name:
            raise InjectionRefused("missing", field=f"{where}.name", remedy="give the container a name")
        if name in names.CONTAINERS:
            raise InjectionRefused(
                f"{name!r} is the name of a container that is injected",
                field=f"{where}.name",
                remedy=f"rename it; if the pod has its sidecar already, annotate it with {names.INJECTION}: disabled",
            )
        _check_user(where, container, pod_user)
        _check_ports(where, container, capture=capture)
        _check_mounts(where, container)
        warnings += _powers(name, container, capture=capture)
    _check_volumes(spec, settings)
    for setting in ("hostPID", "shareProcessNamespace"):
        if spec.get(setting) is True:
            warnings.append(f"{setting}: containers of root can reach into the sidecar's process")
    policy = spec.get("dnsPolicy")
    if policy in ("Default", "None"):
        warnings.append(f"dnsPolicy {policy}: the sidecar needs a resolver that knows {settings.controller.host}")
    return warnings


def check_debugging(spec: Mapping[str, Any]) -> None:
    """Look at the containers that come into a running pod for debugging: neither the sidecar's user nor what it keeps
    its key in is theirs. A name of ours excuses none of them: not every pod has all of our containers.

    :raises InjectionRefused: naming the container
    """
    pod_user = integer_or_none(mapping(spec, "securityContext", "spec").get("runAsUser"))
    for index, container in enumerate(mappings(spec, "ephemeralContainers", "spec")):
        where = f"spec.ephemeralContainers[{index}]"
        _check_user(where, container, pod_user)
        _check_mounts(where, container)


def has_ours(spec: Mapping[str, Any]) -> bool:
    """Whether one of our containers is in a pod; what stands in its annotations can be changed while it runs."""
    return any(container.get("name") in names.CONTAINERS for _, container in containers_of(spec))


def _check_mounts(where: str, container: Mapping[str, Any]) -> None:
    for index, mount in enumerate(mappings(container, "volumeMounts", where)):
        if mount.get("name") in names.VOLUMES:
            raise InjectionRefused(
                f"{mount['name']} is the sidecar's alone",
                field=f"{where}.volumeMounts[{index}]",
                remedy="remove the mount",
            )


def _check_user(where: str, container: Mapping[str, Any], pod_user: int | None) -> None:
    own = integer_or_none(mapping(container, "securityContext", where).get("runAsUser"))
    if (pod_user if own is None else own) == names.UID:
        raise InjectionRefused(
            f"user {names.UID} is the sidecar's, whose connections are not captured",
            field=f"{where}.securityContext.runAsUser" if own is not None else "spec.securityContext.runAsUser",
            remedy="run the application as another user",
        )


def _check_ports(where: str, container: Mapping[str, Any], *, capture: bool) -> None:
    taken = names.PORTS if capture else names.EXPLICIT_PORTS
    for index, port in enumerate(mappings(container, "ports", where)):
        number = integer_or_none(port.get("containerPort"))
        if number in taken:
            raise InjectionRefused(
                f"port {number} is the sidecar's ({names.PORTS[number]})",
                field=f"{where}.ports[{index}].containerPort",
                remedy="let the application listen on another port",
            )


def _powers(name: str, container: Mapping[str, Any], *, capture: bool) -> Iterator[str]:
    """What the container could do to the capture."""
    if not capture:
        return
    security = mapping(container, "securityContext", name)
    if security.get("privileged") is True:
        yield f"container {name} is privileged: it can take the capture of its connections away"
        return
    added = mapping(security, "capabilities", name).get("add")
    found = sorted(
        str(one).removeprefix("CAP_") for one in (added if isinstance(added, list) else ()) if _is_network(one)
    )
    if found:
        yield f"container {name} has {', '.join(found)}: it can get past the capture of its connections"


def _is_network(capability: object) -> bool:
    return str(capability).upper().removeprefix("CAP_") in _NETWORK


def _check_volumes(spec: Mapping[str, Any], settings: InjectionSettings) -> None:
    for index, volume in enumerate(mappings(spec, "volumes", "spec")):
        where = f"spec.volumes[{index}]"
        if volume.get("name") in names.VOLUMES:
            raise InjectionRefused(
                f"{volume['name']!r} is the name of a volume that is injected",
                field=f"{where}.name",
                remedy="rename it",
            )
        for number, source in enumerate(mappings(mapping(volume, "projected", where), "sources", where)):
            token = mapping(source, "serviceAccountToken", where)
            if token.get("audience") == settings.token_audience:
                raise InjectionRefused(
                    f"a token for {settings.token_audience} would let the application have the sidecar's certificate",
                    field=f"{where}.projected.sources[{number}].serviceAccountToken.audience",
                    remedy="remove it; the sidecar has a token of its own",
                )


def is_windows(spec: Mapping[str, Any]) -> bool:
    """Whether the pod is for nodes with Windows, where there is no sidecar of ours."""
    selector = texts(spec, "nodeSelector", "spec")
    return mapping(spec, "os", "spec").get("name") == "windows" or selector.get("kubernetes.io/os") == "windows"
