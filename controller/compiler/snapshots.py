"""Sidecar snapshots from the intermediate form: only the rules that concern one workload, in one order.

A sidecar judges by what it sees: a proved identity, or an address. So what the form says of workloads is written in
those terms. Its own end is always its workload, the one thing that a sidecar surely knows of itself. A source that
proves nothing becomes the networks of its instances; so does every source of a deny rule, because whoever goes round
its own sidecar still comes from its own address. A source that proves its account alone is that account. An allowed
host is that host at addresses outside the cluster. A service account at the far end becomes the workloads that run as
it, as not every peer proves an account. Such a rule keeps its id, with ``@source->destination`` behind it where there
are several; :func:`rule_id` takes it off again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from controller.compiler.baseline import baseline_of
from controller.compiler.form import Form, Subject, contains, kept_out, network, parsed, within
from graph.model import Direction, Rule, Selector, Snapshot, Verdict, WorkloadRef


def snapshot_of(form: Form, subject: Subject) -> Snapshot:
    """The snapshot of one subject of the form."""
    settings = form.settings(subject.ref)
    rules = [rule for rule in form.concerning(subject) for rule in _written(form, subject, rule)]
    return Snapshot(
        subject.ref,
        form.input.trust_domain,
        version=0,
        inbound_mode=settings.inbound,
        outbound_mode=settings.outbound,
        inbound_tls=settings.inbound_tls,
        protocols=subject.protocols,
        inspects=subject.inspects,
        rules=tuple(sorted([*baseline_of(form, subject), *rules], key=lambda rule: rule.id)),
    )


def rule_id(written: str) -> str:
    """The id of the rule that a snapshot's rule was written from."""
    return written.partition("@")[0]


def _written(form: Form, subject: Subject, rule: Rule) -> list[Rule]:
    """One rule in the terms of this workload's sidecar. Evidence is for people and stays in the controller: it changes
    with every flow, and a snapshot must not."""
    rule = replace(rule, evidence=())
    variants: dict[Rule, None] = {}
    mine = Selector.of(subject.ref)
    for direction in Direction:
        if form.at_own_end(rule, subject, direction):
            inbound = direction is Direction.INBOUND
            far = rule.source if inbound else rule.destination
            for peer in _sources(form, rule, far) if inbound else _destinations(form, rule, far):
                ends = {"source": peer, "destination": mine} if inbound else {"source": mine, "destination": peer}
                variants.setdefault(replace(rule, **ends))  # type: ignore[arg-type]  # the two ends are Selectors
    if len(variants) == 1:
        return list(variants)
    return [
        variant
        if (variant.source, variant.destination) == (rule.source, rule.destination)
        else replace(variant, id=f"{rule.id}@{variant.source}->{variant.destination}")
        for variant in variants
    ]


def _sources(form: Form, rule: Rule, selector: Selector) -> Iterator[Selector]:
    if kept_out(rule, selector):
        yield from _beyond(form, selector)
        return
    yield selector
    if not selector.by_identity:
        return
    for subject in _named(form, selector) if selector.workload else ():
        if subject.account_identity:  # proves no more than its account, which is no other's
            yield Selector(subject.ref.namespace, service_account=subject.account, cidr=selector.cidr)
    addresses = [
        parsed(address)
        for subject in _named(form, selector)
        if not subject.meshed or rule.effect is Verdict.DENY
        for address in subject.own
        if not selector.cidr or within(address, selector.cidr)
    ]
    four = [ipaddress.IPv4Network(address) for address in addresses if isinstance(address, ipaddress.IPv4Address)]
    six = [ipaddress.IPv6Network(address) for address in addresses if isinstance(address, ipaddress.IPv6Address)]
    for block in (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)):
        yield Selector(cidr=str(block))


def _destinations(form: Form, rule: Rule, selector: Selector) -> Iterator[Selector]:
    if kept_out(rule, selector):
        yield from _beyond(form, selector)
        return
    yield selector
    if selector.service_account:
        for subject in _named(form, selector):
            yield replace(Selector.of(subject.ref), cidr=selector.cidr)


def _beyond(form: Form, selector: Selector) -> Iterator[Selector]:
    """What a selector of the outside leaves when the cluster's own networks are taken out."""
    if not form.networks:
        yield selector
        return
    wanted = network(selector.cidr) if selector.cidr else None
    for block in form.beyond:
        if wanted is None or contains(wanted, block):
            yield replace(selector, cidr=str(block))
        elif contains(block, wanted):
            yield selector


def _named(form: Form, selector: Selector) -> list[Subject]:
    if selector.workload:
        found = form.subjects.get(WorkloadRef(selector.namespace, selector.workload))
        return [found] if found is not None and found.named_by(selector) else []
    return [subject for subject in form.subjects.values() if subject.named_by(selector)]
