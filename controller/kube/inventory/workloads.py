"""One workload of the inventory and its instances, from an owner and its pods. Pure."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from certs.errors import CertError
from certs.spiffe import SpiffeId
from controller.injection.names import INSPECTABLE_HOSTS
from controller.inventory.ports import MAX_NAMED_PORTS, OPAQUE
from controller.kube.inventory.objects import MAX_PORTS, OwnerFacts, PodFacts, Template
from controller.kube.inventory.owners import Top
from controller.kube.inventory.reading import Labels
from controller.kube.inventory.said import NamespaceSaid, Said, inspected_of, opaque_of
from graph.model import Instance, Port, Protocol, Workload

_KIND = re.compile(r"[A-Z][A-Za-z]{0,62}")
#: As the inventory's file takes it.
_SCHEDULE = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|(\S+ +){4}\S+")

type Spoken = Mapping[tuple[int, Protocol], str]
"""``appProtocol`` by port, as services and their slices say it."""


def workload_of(
    top: Top,
    owner: OwnerFacts | None,
    pods: Sequence[PodFacts],
    *,
    injected: bool,
    spoken: Spoken,
    space: NamespaceSaid,
) -> Workload:
    """The workload of a top owner.

    :param owner: its object, where its kind is followed
    :param pods: those that it has now
    :param injected: whether pods of the namespace get a sidecar when they are made
    :param space: what the namespace says
    """
    template = owner.template if owner is not None else None
    made = [pod.spec for pod in pods] or ([template] if template is not None else [])
    meshed = _meshed(template, pods, injected)
    speaking = [template.said] if template is not None else [pod.spec.said for pod in pods]
    return Workload(
        top.ref,
        kind=top.kind if _KIND.fullmatch(top.kind) else "Other",
        service_account=_account(template, pods),
        labels=_common_labels(made),
        ports=_ports(template, pods, spoken, opaque_of(speaking, space)),
        meshed=meshed,
        schedule=owner.schedule if owner is not None and _SCHEDULE.fullmatch(owner.schedule) else "",
        inspects=inspected_of(said_by(owner, pods), space)[0] if meshed else (),
    )


def said_by(owner: OwnerFacts | None, pods: Iterable[PodFacts]) -> set[Said]:
    """Everything that the template and the pods say: while one replaces the other, both are there."""
    template = owner.template if owner is not None else None
    return {pod.spec.said for pod in pods} | ({template.said} if template is not None else set())


def instance_of(pod: PodFacts, addresses: tuple[str, ...], workload: Workload) -> Instance | None:
    """A pod as an instance; None while nobody could tell it by an address."""
    if not addresses or pod.spec.host_network:
        return None
    account = pod.spec.account
    return Instance(
        pod.name,
        workload.ref,
        addresses[0],
        pod.ready and not pod.ending,
        pod.spec.sidecar,
        account if account != workload.service_account else "",
        addresses[1:],
        pod.uid,
    )


def identity_problem(trust_domain: str, workload: Workload, accounts: Iterable[str]) -> str:
    """Why there can be no SPIFFE ID for it; empty when there can."""
    for account in {workload.service_account, *accounts}:
        try:
            SpiffeId.for_workload(trust_domain, workload.ref.namespace, account, workload.ref.name)
        except CertError as error:
            return f"{workload.ref} under the ServiceAccount {account} can have no SPIFFE ID: {error}"
    return ""


def annotation_problem(workload: Workload, said: Iterable[Said], space: NamespaceSaid) -> str:
    """What of its annotations is not followed, and why; empty when all are."""
    everything = tuple(said)
    problems = sorted({each.problem for each in everything if each.problem})
    denied = inspected_of(everything, space)[1] if workload.meshed else ()
    if denied:
        shown = ", ".join(map(str, denied[:3]))
        problems.append(
            f"asks to have {shown} inspected, which its namespace does not permit; an administrator may annotate the "
            f"namespace: {INSPECTABLE_HOSTS}={denied[0].host}"
        )
    return f"{workload.ref}: {'; '.join(problems)}" if problems else ""


def _account(template: Template | None, pods: Sequence[PodFacts]) -> str:
    if template is not None:
        return template.account
    counted = Counter(pod.spec.account for pod in pods)
    return min(counted, key=lambda account: (-counted[account], account), default="default")


def _common_labels(made: Sequence[Template]) -> Labels:
    """What every pod carries, so that a policy that selects by it misses none."""
    kinds = {each.labels for each in made}
    if len(kinds) < 2:
        return kinds.pop() if kinds else ()
    return tuple(sorted(set.intersection(*(set(each) for each in kinds))))


def _ports(
    template: Template | None, pods: Sequence[PodFacts], spoken: Spoken, opaque: frozenset[int]
) -> tuple[Port, ...]:
    found = _declared([template.ports] if template is not None else dict.fromkeys(pod.spec.ports for pod in pods))
    named = dict.fromkeys(((number, Protocol.TCP) for number in sorted(opaque)), OPAQUE)
    named |= {at: said for at, said in sorted(spoken.items()) if at not in named}
    for (number, protocol), said in list(named.items())[:MAX_NAMED_PORTS]:
        known = found.get((number, protocol), Port(number, protocol))
        found[number, protocol] = Port(number, protocol, known.name, said)
    names = Counter(port.name for port in found.values())
    return tuple(
        port if names[port.name] == 1 else Port(port.number, port.protocol, "", port.app_protocol)
        for _, port in sorted(found.items())
    )


def _declared(lists: Iterable[tuple[Port, ...]]) -> dict[tuple[int, Protocol], Port]:
    """The first that is said of each port, of no more than one pod could have: pods of an owner that is not followed
    can each declare others."""
    found: dict[tuple[int, Protocol], Port] = {}
    for port in itertools.chain.from_iterable(lists):
        if len(found) >= MAX_PORTS:
            break
        found.setdefault((port.number, port.protocol), port)
    return found


def _meshed(template: Template | None, pods: Sequence[PodFacts], injected: bool) -> bool:
    """Whether it proves who it is: one that has a sidecar in any pod does, also while others have none yet."""
    able = [pod.spec for pod in pods if not pod.spec.host_network]
    if able:
        return any(each.sidecar for each in able)
    if template is None or pods or template.host_network:
        return False
    return template.sidecar or (injected and template.wanted is not False)
