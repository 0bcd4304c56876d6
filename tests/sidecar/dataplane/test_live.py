"""The register of live connections: registered before judged, judged again, reported once."""

from __future__ import annotations

from graph.model import Direction, Mode, Origin, Peer, PortRange, Rule, Selector, Snapshot, Verdict, WorkloadRef
from graph.policy import Reason
from sidecar.dataplane.live import Connections, new_record, refusal
from tests.sidecar.dataplane.stand_ins import FlowList, HeldPolicy
from tests.sidecar.dataplane.timers import Loop

CART = WorkloadRef("shop", "cart")
FRONT = Peer(WorkloadRef("shop", "front"), "shop", "default", "10.0.0.1", True)
BACK = Peer(WorkloadRef("shop", "back"), "shop", "default", "10.0.0.2", True)


def rule(effect=Verdict.ALLOW, source="front"):
    return Rule("r", Selector(namespace="shop", workload=source), Selector(), effect=effect, origin=Origin.OVERRIDE)


def snapshot(*rules, mode=Mode.ENFORCE):
    return Snapshot(CART, "hedgerow.test", 1, mode, mode, rules=rules)


def make(*rules, mode=Mode.ENFORCE):
    policy, flows = HeldPolicy(snapshot(*rules, mode=mode)), FlowList()
    return Connections(policy, flows), policy, flows


def record(source=FRONT):
    return new_record(Direction.INBOUND, source, Peer(CART), 80)


def enter(register, source=FRONT):
    ended = []
    connection = register.judge(record(source), lambda connection: (ended.append(True), connection.finish()))
    return connection, ended


def test_a_refused_one_is_reported_closed_and_not_kept():
    register, _, flows = make()
    connection, ended = enter(register)
    assert not connection.allowed
    assert register.count == 0
    assert [(item.decision.reason, item.closed) for item in flows.opened_records] == [(Reason.NO_RULE, True)]
    connection.finish()
    connection.refuse(refusal(Reason.UNTRUSTED_PEER))
    assert flows.closed_records == []
    assert not ended


def test_an_allowed_one_is_announced_once_and_closed_once():
    register, _, flows = make(rule())
    connection, _ = enter(register)
    assert connection.allowed
    assert register.count == 1
    assert flows.opened_records == []
    connection.announce()
    connection.announce()
    connection.finish()
    connection.finish(failed=True)
    assert len(flows.opened_records) == len(flows.closed_records) == 1
    assert not flows.closed_records[0].failed
    assert register.count == 0


def test_one_that_failed_before_it_was_announced_is_reported_both_ways():
    register, _, flows = make(rule())
    connection, _ = enter(register)
    connection.finish(failed=True)
    assert flows.opened_records == flows.closed_records
    assert flows.closed_records[0].failed


def test_a_change_ends_what_is_denied_now_and_nothing_else():
    register, policy, _ = make(rule(), rule(source="back"))
    front, front_ended = enter(register)
    back, back_ended = enter(register, BACK)
    policy.apply(snapshot(rule(Verdict.DENY), rule(source="back")))
    assert front_ended
    assert not back_ended
    assert register.count == 1
    assert front.record.closed
    assert not back.record.closed
    assert front.record.decision.allowed, "what was decided when it opened"


def test_what_stays_allowed_is_reported_with_what_allows_it_now():
    register, policy, _ = make(mode=Mode.LEARN)
    connection, ended = enter(register)
    assert (connection.record.decision.reason, connection.record.decision.pending) == (Reason.LEARNING, Verdict.DENY)
    policy.apply(snapshot(rule()))
    assert not ended
    assert connection.record.decision.allowed
    assert (connection.record.decision.rule_id, connection.record.decision.pending) == ("r", Verdict.ALLOW)


def test_a_change_between_registering_and_judging_is_not_missed():
    flows = FlowList()

    class Changing(HeldPolicy):
        def inbound(self, source, port):
            decision = super().inbound(source, port)
            if self._snapshot.rules[0].effect is not Verdict.DENY:
                self.apply(snapshot(rule(Verdict.DENY)))  # just after it was judged
            return decision

    register = Connections(Changing(snapshot(rule())), flows)
    ended = []
    connection = register.judge(record(), lambda connection: (ended.append(True), connection.finish()))
    assert ended
    assert not connection.allowed
    assert register.count == 0


def test_a_withdrawn_one_leaves_no_report():
    register, policy, flows = make(rule())
    connection, ended = enter(register)
    connection.withdraw()
    connection.finish()
    policy.apply(snapshot())
    assert register.count == 0
    assert flows.opened_records == flows.closed_records == []
    assert not ended


def test_the_owner_is_told_of_the_end_with_whether_it_failed():
    register, _, _ = make(rule())
    results = []
    for failed in (True, False):
        connection, _ = enter(register)
        connection.after(results.append)
        connection.finish(failed=failed)
    assert results == [True, False]


def test_waiting_for_the_last_one():
    register, _, _ = make(rule())
    called = []
    register.when_empty(lambda: called.append("at once"))
    first, _ = enter(register)
    second, _ = enter(register)
    register.when_empty(lambda: called.append("later"))
    first.finish()
    assert called == ["at once"]
    second.finish()
    assert called == ["at once", "later"]


def test_ending_all():
    register, _, _ = make(rule())
    ends = [enter(register)[1] for _ in range(3)]
    register.end_all()
    assert all(ends)
    assert register.count == 0


def enter_limited(seconds):
    register = Connections(HeldPolicy(snapshot(rule())), FlowList(), seconds)
    ended = []
    return register.judge(record(), lambda connection: (ended.append(True), connection.finish())), ended, Loop()


def test_a_half_closed_connection_that_carries_nothing_is_ended():
    connection, ended, loop = enter_limited(3600.0)
    connection.half_closed(loop)
    assert [timer.delay for timer in loop.timers] == [3600.0]
    for _ in range(3):
        connection.record.bytes_received += 1
        loop.fire()
        assert not ended, "the other direction is in use"
    loop.fire()
    assert ended
    assert not loop.timers


def test_a_half_closed_connection_that_ends_in_time_is_not_ended_again():
    connection, ended, loop = enter_limited(3600.0)
    connection.half_closed(loop)
    connection.half_closed(loop)
    assert len(loop.timers) == 1
    connection.finish()
    connection.half_closed(loop)
    loop.fire()
    assert not loop.timers
    assert not ended


def test_the_limit_of_half_closed_connections_can_be_off():
    connection, _, loop = enter_limited(0.0)
    connection.half_closed(loop)
    assert not loop.timers


VIP, POD = ("10.96.0.9", 80), ("10.1.0.7", 8080)
BACK_AT = Peer(WorkloadRef("shop", "back"), address=POD[0])
OTHER_AT = Peer(WorkloadRef("shop", "other"), address="10.1.0.8")


def call(register, place=POD, workload=None, asked=None):
    """A connection to ``place``, after the directory was asked about it, or of a service."""
    ended = []
    address, port = place
    made = new_record(Direction.OUTBOUND, Peer(CART), Peer(workload, address=address), port)
    return register.judge(made, lambda one: (ended.append(True), one.finish()), asked or place), ended


def denied(workload, port=None):
    to = Selector(namespace=workload.namespace, workload=workload.name)
    ports = (PortRange.single(port),) if port else ()
    return Rule("d", Selector(), to, ports, effect=Verdict.DENY, origin=Origin.OVERRIDE)


def test_who_turns_out_to_be_denied_is_ended_and_nobody_else_is():
    register, _, _ = make(denied(BACK_AT.workload), mode=Mode.LEARN)
    connection, ended = call(register)
    others = [call(register, (POD[0], 80)), call(register, VIP), call(register, POD, OTHER_AT.workload)]
    register.known(POD, {POD: Peer(address=POD[0])})  # still nobody
    register.known(POD, {})
    assert connection.allowed
    register.known(POD, {POD: BACK_AT})
    assert ended == [True]
    assert not register.strange(POD)
    assert [ended for _, ended in others] == [[], [], []]
    assert register.count == 3


def test_who_turns_out_to_be_allowed_is_judged_as_such_from_then_on():
    register, policy, flows = make(mode=Mode.LEARN)
    connections = [call(register) for _ in range(2)]
    register.known(POD, {POD: BACK_AT})
    assert not register.strange(POD)
    register.known(POD, {POD: OTHER_AT})  # somebody else has the address by now; whom we reach has not changed
    policy.apply(snapshot(denied(OTHER_AT.workload), mode=Mode.LEARN))
    assert [ended for _, ended in connections] == [[], []]
    connections[0][0].finish()
    policy.apply(snapshot(denied(BACK_AT.workload), mode=Mode.LEARN))
    assert [ended for _, ended in connections] == [[], [True]]
    assert register.count == 0
    assert {record.destination for record in flows.closed_records} == {Peer(address=POD[0])}, "as it was reported"
    assert call(register)[0].allowed


def test_who_was_called_by_a_service_s_address_is_judged_by_the_port_of_the_one_behind_it():
    register, policy, _ = make(denied(BACK_AT.workload, 8080), mode=Mode.LEARN)
    _, ended = call(register, VIP)
    register.known(VIP, {POD: BACK_AT})
    assert ended == [True]
    policy.apply(snapshot(mode=Mode.LEARN))
    _, ended = call(register, VIP)
    register.known(VIP, {POD: BACK_AT})
    policy.apply(snapshot(denied(BACK_AT.workload, 80), mode=Mode.LEARN))
    assert ended == []
    policy.apply(snapshot(denied(BACK_AT.workload, 8080), mode=Mode.LEARN))
    assert ended == [True]


def test_a_stranger_behind_a_service_is_judged_when_the_service_says_who_it_is():
    register, _, _ = make(denied(BACK_AT.workload), mode=Mode.LEARN)
    _, ended = call(register, POD, asked=VIP)
    elsewhere = ("10.1.0.8", 8080)
    register.known(VIP, {elsewhere: OTHER_AT})  # the one that we have reached is not among them
    assert ended == []
    register.known(VIP, {elsewhere: OTHER_AT, POD: BACK_AT})
    assert ended == [True]
    assert not register.strange(VIP)


def test_one_of_several_is_ended_and_so_is_one_that_was_judged_by_operation():
    register, _, _ = make(mode=Mode.LEARN)
    _, ended = call(register, VIP)
    register.known(VIP, {POD: BACK_AT, ("10.1.0.8", 8080): OTHER_AT})
    assert ended == [True]
    connection, ended = call(register)
    connection.by_operation = True
    register.known(POD, {POD: BACK_AT})
    assert ended == [True]


def test_a_stranger_that_can_not_be_judged_ends(caplog):
    register, policy, _ = make(mode=Mode.LEARN)
    _, ended = call(register)

    def outbound(peer, port):
        raise ValueError("a fault")

    policy.outbound = outbound
    register.known(POD, {POD: BACK_AT})
    assert ended == [True]
    assert "please report it" in caplog.text
    assert not register.strange(POD)


def test_a_fault_at_the_end_of_one_keeps_none_of_the_others(caplog):
    register, policy, _ = make(rule())
    ended = []

    def broken(connection):
        ended.append(connection)
        raise ValueError("a fault")

    connections = [register.judge(record(), broken) for _ in range(3)]
    policy.apply(snapshot())
    assert set(ended) == set(connections)
    assert "a fault of ours at the end of a connection" in caplog.text
    register.end_all()
    assert len(ended) == 6


def test_what_can_not_be_judged_any_more_ends(caplog):
    register, policy, _ = make(mode=Mode.LEARN)
    connections = [enter(register), enter(register, BACK)]
    real = policy.inbound

    def inbound(peer, port):
        if peer == FRONT:
            raise ValueError("a fault")
        return real(peer, port)

    policy.inbound = inbound
    policy.apply(snapshot(mode=Mode.LEARN))
    assert [ended for _, ended in connections] == [[True], []]
    assert "please report it" in caplog.text
