"""The live graph: two witnesses are not two events, traffic and memory are bounded, and a dump brings it back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from graph.flow import EdgeKey, Flow
from graph.model import Direction, Instance, Port, Protocol, Verdict, Workload, WorkloadRef
from graph.service_graph import OTHER_ADDRESSES, EdgeVerdict, Limits, ServiceGraph
from graph.views import EdgeView, NodeView
from graph.windows import Counts
from tests.graph.reports import CART, DB, FRONT, IN, KEY, NOW, OUT, edge, outside, small_flows


def test_one_end_reports_and_the_edge_has_its_figures() -> None:
    graph = ServiceGraph()
    assert graph.ingest([OUT], NOW) == {KEY}
    assert edge(graph) == EdgeView(
        key=KEY,
        verdict=EdgeVerdict.ALLOW,
        connections=3,
        verified=3,
        bytes_sent=30,
        bytes_received=300,
        first_seen=10.0,
        last_seen=20.0,
        source_identities=("spiffe://td/front",),
        destination_identities=("spiffe://td/cart",),
        reporters=("front-0",),
        replicas=1,
    )


def test_both_ends_reports_are_one_truth_and_the_larger_counts() -> None:
    graph = ServiceGraph()
    graph.ingest([OUT, replace(IN, connections=2, bytes_sent=40)], NOW)
    view = edge(graph)
    assert (view.connections, view.verified, view.bytes_sent, view.bytes_received) == (3, 3, 40, 300)
    assert view.reporters == ("cart-0", "front-0")
    assert view.replicas == 1, "replicas of the source"
    graph.ingest([replace(IN, connections=2)], NOW)
    assert edge(graph).connections == 4, "3 from the one end, 2 + 2 from the other"


def test_reports_of_one_end_add_up_over_its_replicas() -> None:
    graph = ServiceGraph()
    graph.ingest([OUT, replace(OUT, reporter="front-1", source_identity="")], NOW)
    graph.ingest([replace(OUT, failed=1, verified=False)], NOW)
    view = edge(graph)
    assert (view.connections, view.verified, view.failed, view.replicas) == (9, 6, 1, 2)
    assert view.source_identities == ("spiffe://td/front",)


def test_refused_connections_are_counted_apart() -> None:
    graph = ServiceGraph()
    graph.ingest([replace(OUT, verdict=Verdict.DENY, pending=Verdict.DENY)], NOW)
    view = edge(graph)
    assert (view.connections, view.verified, view.denied, view.verdict) == (0, 0, 3, EdgeVerdict.DENY)
    graph.ingest([replace(OUT, pending=Verdict.DENY, last_seen=30.0)], NOW)
    view = edge(graph)
    assert (view.connections, view.would_deny, view.denied) == (3, 3, 3)
    assert view.verdict is EdgeVerdict.WOULD_DENY


def test_the_verdict_is_that_of_the_last_connections_not_of_the_last_report() -> None:
    denied = replace(OUT, verdict=Verdict.DENY, pending=Verdict.DENY)
    graph = ServiceGraph()
    graph.ingest([replace(OUT, last_seen=50.0), replace(denied, last_seen=40.0)], NOW)
    assert edge(graph).verdict is EdgeVerdict.ALLOW
    graph.ingest([replace(denied, last_seen=50.0)], NOW)
    assert edge(graph).verdict is EdgeVerdict.DENY, "of two at the same time the stricter"


def test_bytes_of_a_living_connection_do_not_hide_a_new_refusal() -> None:
    graph = ServiceGraph()
    graph.ingest([replace(OUT, last_seen=20.0), replace(OUT, connections=0, last_seen=60.0)], NOW)
    graph.ingest([replace(OUT, verdict=Verdict.DENY, pending=Verdict.DENY, last_seen=55.0)], NOW)
    assert edge(graph).verdict is EdgeVerdict.DENY


def test_one_end_that_refuses_is_enough_until_it_is_overtaken() -> None:
    graph = ServiceGraph()
    refused = replace(IN, verdict=Verdict.DENY, pending=Verdict.DENY, last_seen=20.5)
    graph.ingest([replace(OUT, last_seen=21.0), refused], NOW)
    assert edge(graph).verdict is EdgeVerdict.DENY
    graph.ingest([replace(OUT, last_seen=90.0)], NOW)
    assert edge(graph).verdict is EdgeVerdict.ALLOW


def test_times_from_a_clock_ahead_count_as_now_and_reversed_ones_are_put_right() -> None:
    graph = ServiceGraph()
    graph.ingest([replace(OUT, first_seen=1e12, last_seen=50.0)], NOW)
    assert (edge(graph).first_seen, edge(graph).last_seen) == (50.0, NOW)


def test_nodes_carry_what_the_inventory_says() -> None:
    graph = ServiceGraph()
    graph.put_workload(Workload(CART, kind="StatefulSet", labels=(("app", "cart"),)), "spiffe://td/cart")
    graph.put_instance(Instance("cart-0", CART, "10.0.0.1"))
    graph.put_instance(Instance("cart-1", CART, "10.0.0.2"))
    assert graph.node(CART) == NodeView(CART, "StatefulSet", True, 2, "spiffe://td/cart", (("app", "cart"),))
    graph.ingest([replace(OUT, source=outside(1))], NOW)
    assert graph.node(outside(1)) == NodeView(outside(1), "External")
    assert graph.node(DB) is None


def test_edges_carry_the_destinations_application_protocol_also_when_it_changes() -> None:
    graph = ServiceGraph()
    graph.ingest([OUT], NOW)
    assert edge(graph).app_protocol == ""
    before = graph.generation
    graph.put_workload(Workload(CART, ports=(Port(8080, app_protocol="grpc"), Port(8080, Protocol.UDP))))
    assert edge(graph).app_protocol == "grpc"
    assert KEY in {view.key for view in graph.changes(before).edges}


def test_scaling_down_changes_the_node_and_keeps_the_edges() -> None:
    graph = ServiceGraph()
    graph.put_workload(Workload(FRONT))
    for number in range(3):
        graph.put_instance(Instance(f"front-{number}", FRONT, f"10.0.0.{number}"))
    graph.ingest([OUT], NOW)
    before = graph.generation
    assert graph.remove_instance("shop", "front-0")
    assert not graph.remove_instance("shop", "front-0")
    changes = graph.changes(before)
    assert [(node.id, node.instances) for node in changes.nodes] == [("shop/front", 2)]
    assert changes.edges == changes.removed_edges == ()
    assert edge(graph).reporters == ("front-0",), "what it reported stays"


def test_an_instance_belongs_to_one_workload() -> None:
    graph = ServiceGraph()
    for ref in (FRONT, CART):
        graph.put_workload(Workload(ref))
    graph.put_instance(Instance("web-0", FRONT, "10.0.0.1"))
    graph.put_instance(Instance("web-0", CART, "10.0.0.1"))
    assert [(node.id, node.instances) for node in graph.nodes()] == [("shop/cart", 1), ("shop/front", 0)]
    assert graph.instances(CART) == (Instance("web-0", CART, "10.0.0.1"),)


def test_removing_a_workload_takes_its_edges_and_lonely_outsiders_along() -> None:
    graph = ServiceGraph()
    for ref in (FRONT, CART):
        graph.put_workload(Workload(ref))
    graph.ingest([OUT, replace(OUT, source=outside(1)), replace(OUT, source=CART, destination=DB)], NOW)
    before = graph.generation
    removed = graph.remove_workload(CART, NOW)
    assert len(removed) == 3
    changes = graph.changes(before)
    assert set(changes.removed_edges) == set(removed)
    assert set(changes.removed_nodes) == {CART, outside(1), DB}
    assert [node.ref for node in graph.nodes()] == [FRONT]
    assert graph.windows.series(KEY) == ()


def test_reports_from_before_a_removal_do_not_bring_a_workload_back() -> None:
    graph = ServiceGraph()
    graph.put_workload(Workload(CART))
    graph.remove_workload(CART, 50.0)
    assert graph.ingest([replace(OUT, last_seen=49.0)], NOW) == frozenset()
    assert graph.shed.late == 1
    assert graph.nodes() == ()
    graph.ingest([replace(OUT, last_seen=51.0)], NOW)
    assert edge(graph).connections == 3
    graph.remove_workload(CART, 60.0)
    graph.put_workload(Workload(CART))
    graph.ingest([replace(OUT, last_seen=55.0)], NOW)
    assert edge(graph).connections == 3, "it is there again, so its reports count"


def test_outside_addresses_beyond_the_bound_share_one_node_and_are_counted() -> None:
    graph = ServiceGraph(Limits(external=2))
    graph.ingest([replace(OUT, destination=outside(number), port=443) for number in range(1, 8)], NOW)
    nodes = {node.ref for node in graph.nodes()}
    assert nodes == {FRONT, outside(1), outside(2), OTHER_ADDRESSES}
    assert edge(graph, EdgeKey(FRONT, OTHER_ADDRESSES, 443)).connections == 15
    assert graph.shed.folded == 5
    graph.ingest([replace(OUT, destination=outside(1), port=443)], NOW)
    assert edge(graph, EdgeKey(FRONT, outside(1), 443)).connections == 6, "those that have a node keep it"
    assert all(graph.remove_edge(view.key) for view in graph.edges())
    assert graph.edges() == ()
    graph.ingest([replace(OUT, destination=outside(7), port=443)], NOW)
    assert graph.node(outside(7)) is not None, "there is room again"


def test_invented_workloads_and_edges_are_bounded_and_counted() -> None:
    graph = ServiceGraph(Limits(unknown=3, edges=4))
    graph.put_workload(Workload(FRONT))
    invented = [replace(OUT, destination=WorkloadRef("shop", f"x{number}")) for number in range(9)]
    graph.ingest(invented, NOW)
    assert len(graph.nodes()) == 4
    assert graph.shed.unknown == 6
    graph.ingest([replace(OUT, destination=WorkloadRef("shop", "x0"), port=port) for port in range(1, 10)], NOW)
    assert len(graph.edges()) == 4
    assert graph.shed.edges == 8
    graph.put_workload(Workload(WorkloadRef("shop", "x0")))
    graph.remove_edge(invented[0].edge)
    graph.ingest([replace(OUT, destination=DB)], NOW)
    assert graph.node(DB) is not None, "an inventory that names one makes room"


def test_one_who_tries_every_port_leaves_room_for_the_others() -> None:
    graph = ServiceGraph(Limits(ports=5, external_ports=2))
    graph.ingest([replace(OUT, port=port) for port in range(1, 100)], NOW)
    graph.ingest([replace(OUT, source=outside(1), port=port) for port in range(1, 100)], NOW)
    graph.ingest([replace(OUT, destination=outside(1), port=port) for port in range(1, 100)], NOW)
    assert len(graph.edges()) == 5 + 2 + 2
    assert graph.shed.edges == 94 + 97 + 97
    graph.ingest([replace(OUT, port=1)], NOW)
    assert edge(graph, replace(KEY, port=1)).connections == 2 * OUT.connections, "those that are there go on counting"
    graph.ingest([replace(OUT, destination=DB), replace(OUT, source=DB)], NOW)
    assert len(graph.edges()) == 5 + 2 + 2 + 2, "others have their own"


def test_one_who_tries_every_address_leaves_room_for_the_others() -> None:
    graph = ServiceGraph(Limits(external=8, external_each=3, external_space=5))
    refused = replace(OUT, verdict=Verdict.DENY)  # to be refused is enough to be counted
    graph.ingest([replace(refused, destination=outside(n)) for n in range(80)], NOW)
    graph.ingest([replace(refused, source=CART, destination=outside(n)) for n in range(100, 180)], NOW)
    known = {node.ref for node in graph.nodes() if node.ref.is_external} - {OTHER_ADDRESSES}
    assert known == {outside(0), outside(1), outside(2), outside(100), outside(101)}, (
        "three each, five of one namespace"
    )
    other = WorkloadRef("bank", "ledger")
    graph.ingest([replace(OUT, source=other, destination=outside(n)) for n in (0, 200, 201)], NOW)
    assert {edge.key.destination for edge in graph.edges() if edge.key.source == other} == {
        outside(0),
        outside(200),
        outside(201),
    }, "another namespace has its own, and knows what is known"
    graph.remove_edge(replace(KEY, destination=outside(1)))
    graph.ingest([replace(OUT, destination=outside(210))], NOW)
    assert graph.node(outside(210)) is not None, "what goes makes room again"


def test_one_who_speaks_of_everybody_leaves_room_for_the_others() -> None:
    graph = ServiceGraph(Limits(edges_each=10))
    peers = [WorkloadRef("bank", f"w{n}") for n in range(30)]
    graph.ingest([replace(OUT, destination=peer) for peer in peers], NOW)
    assert len(graph.edges()) == 10
    graph.ingest([replace(OUT, direction=Direction.INBOUND, destination=peer) for peer in peers], NOW)
    assert len(graph.edges()) == 30, "those who were called have a word of their own"
    graph.ingest([replace(OUT, source=DB)], NOW)
    assert len(graph.edges()) == 31
    for peer in peers:
        graph.remove_edge(replace(KEY, destination=peer))
    graph.ingest([replace(OUT, destination=peer) for peer in peers], NOW)
    assert len(graph.edges()) == 11, "what goes makes room again"


def test_reporters_and_identities_are_bounded_to_the_latest() -> None:
    graph = ServiceGraph()
    graph.ingest(
        [replace(OUT, reporter=f"front-{n:03}", source_identity=f"spiffe://td/{n:03}") for n in range(200)], NOW
    )
    view = edge(graph)
    assert len(view.reporters) == view.replicas == 64
    assert view.reporters[-1] == "front-199"
    assert len(view.source_identities) == 16
    assert view.source_identities[-1] == "spiffe://td/199"
    assert view.connections == 600


def test_windows_take_the_edges_figures_not_both_reports() -> None:
    graph = ServiceGraph()
    graph.ingest([replace(OUT, last_seen=95.0), replace(IN, last_seen=95.0)], NOW)
    total = graph.windows.total(KEY, 0, NOW)
    assert total == Counts(connections=3, verified=3, bytes_sent=30, bytes_received=300)


def test_requests_that_were_refused_are_counted_for_an_hour_and_their_connections_apart() -> None:
    graph = ServiceGraph()
    refused = replace(IN, operation="GET /", requests=4, connections=0, bytes_sent=0, bytes_received=0, failed=0)
    refused = replace(refused, verdict=Verdict.DENY, last_seen=95.0)
    graph.ingest([refused], NOW)
    assert graph.refused_requests.denied(0) == {}, "connections make the edge"
    graph.ingest([OUT, refused, replace(refused, operation="POST /", requests=1)], NOW)
    graph.ingest([replace(refused, verdict=Verdict.ALLOW, requests=100)], NOW)
    assert graph.refused_requests.denied(NOW - 3600) == {KEY: 5}
    assert graph.windows.denied(0) == {}, "a request is no connection"
    assert graph.refused_requests.drain(NOW).changed == (), "nobody writes it down, so nothing waits for that"
    later = NOW + 3700
    graph.ingest([replace(refused, requests=2, last_seen=later)], later)
    assert graph.refused_requests.denied(0) == {KEY: 2}
    graph.remove_edge(KEY)
    assert graph.refused_requests.denied(0) == {}


def test_a_dump_brings_the_edges_back() -> None:
    graph = ServiceGraph()
    graph.ingest([OUT, replace(IN, connections=9), replace(OUT, destination=outside(1), verdict=Verdict.DENY)], NOW)
    totals = graph.dump()
    assert len(totals) == 3
    assert {each.direction for each in graph.dump([KEY])} == set(Direction)
    again = ServiceGraph()
    again.load(totals)
    assert again.edges() == graph.edges()
    assert set(again.dump()) == set(totals)
    for each in (graph, again):
        each.ingest([replace(IN, connections=1, last_seen=70.0)], NOW)
    assert again.edges() == graph.edges()
    assert edge(again).connections == 10


def test_a_dump_is_held_to_the_bounds() -> None:
    graph = ServiceGraph()
    graph.ingest([replace(OUT, destination=outside(number)) for number in range(1, 6)], NOW)
    small = ServiceGraph(Limits(edges=2))
    small.load(graph.dump())
    assert len(small.edges()) == 2
    assert small.shed.edges == 3


@given(st.lists(small_flows, max_size=12), st.lists(st.booleans(), max_size=12))
def test_figures_are_the_larger_of_both_ends_sums(reported: list[Flow], cuts: list[bool]) -> None:
    graph = ServiceGraph()
    batch: list[Flow] = []
    for index, flow in enumerate(reported):
        batch.append(flow)
        if index < len(cuts) and cuts[index]:
            graph.ingest(batch, 1e10)
            batch = []
    graph.ingest(batch, 1e10)
    for view in graph.edges():
        sums = dict.fromkeys(Direction, 0)
        denied = dict(sums)
        for flow in reported:
            if flow.edge == view.key and not flow.operation:
                (sums if flow.verdict is Verdict.ALLOW else denied)[flow.direction] += flow.connections
        assert view.connections == max(sums.values())
        assert view.denied == max(denied.values())
        assert view.first_seen <= view.last_seen
    assert {view.key for view in graph.edges()} == {flow.edge for flow in reported if not flow.operation}
