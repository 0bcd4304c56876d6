"""Operations belong to the edge of their connections; hosts are nodes; both are bounded."""

from __future__ import annotations

from dataclasses import replace

from graph.flow import EdgeKey
from graph.model import Verdict, WorkloadRef
from graph.operations import OTHER_OPERATIONS
from graph.service_graph import OTHER_ADDRESSES, Limits, ServiceGraph
from graph.views import OperationView
from graph.windows import Counts
from tests.graph.reports import CART, DB, FRONT, IN, KEY, NOW, OUT, edge, outside

ASKED = replace(IN, operation="GET /cart/{id}", requests=7, connections=0, bytes_sent=0, bytes_received=0)


def asked(graph: ServiceGraph, key: EdgeKey = KEY) -> dict[str, OperationView]:
    return {view.name: view for view in edge(graph, key).operations}


def test_an_operation_belongs_to_the_edge_of_its_connections_and_changes_no_other_figure() -> None:
    graph = ServiceGraph()
    graph.ingest([OUT, IN], NOW)
    before, generation = edge(graph), graph.generation
    late = replace(ASKED, first_seen=5.0, last_seen=50.0, verdict=Verdict.DENY, reporter="cart-9", source_identity="x")
    assert graph.ingest([ASKED, late], NOW) == {KEY}
    assert asked(graph) == {"GET /cart/{id}": OperationView("GET /cart/{id}", 7, 7, 0, 5.0, 50.0)}
    assert replace(edge(graph), operations=()) == before, "no connection, no byte, no verdict, no witness"
    assert graph.windows.total(KEY, 0, NOW) == Counts(3, 3, bytes_sent=30, bytes_received=300)
    assert [view.key for view in graph.changes(generation).edges] == [KEY], "but it is seen that it changed"


def test_an_operation_never_makes_an_edge_whatever_it_says() -> None:
    graph = ServiceGraph()
    liar = replace(ASKED, connections=5, bytes_sent=9)
    assert graph.ingest([ASKED, liar], NOW) == frozenset()
    assert (graph.edges(), graph.nodes(), graph.shed.operations) == ((), (), 2)
    graph.ingest([OUT], NOW)
    graph.ingest([liar], NOW)
    assert (edge(graph).connections, edge(graph).bytes_sent) == (3, 30)


def test_operations_may_come_before_the_connections_of_their_own_batch() -> None:
    graph = ServiceGraph()
    graph.ingest([ASKED, IN], NOW)
    assert asked(graph)["GET /cart/{id}"].requests == 7


def test_requests_of_addresses_that_share_a_node_are_counted_on_it() -> None:
    graph = ServiceGraph(Limits(external=1))
    graph.ingest([replace(IN, source=outside(number)) for number in (1, 2, 3)], NOW)
    graph.ingest([replace(ASKED, source=outside(3))], NOW)
    assert asked(graph, EdgeKey(OTHER_ADDRESSES, CART, 8080))["GET /cart/{id}"].requests == 7


def test_a_host_is_a_node_and_is_bounded_as_addresses_are() -> None:
    graph = ServiceGraph(Limits(external=2))
    hosts = [WorkloadRef.external_host(f"n{number}.example.com") for number in range(4)]
    graph.ingest([replace(OUT, destination=host, port=443) for host in hosts], NOW)
    assert [view.ref for view in graph.nodes() if view.external] == sorted([OTHER_ADDRESSES, *hosts[:2]])
    assert graph.shed.folded == 2
    node = graph.node(hosts[0])
    assert node is not None
    assert (node.kind, node.meshed) == ("External", False)


def test_operations_of_all_edges_together_are_bounded_and_places_come_back() -> None:
    graph = ServiceGraph(Limits(operations=3))
    graph.ingest([IN, replace(IN, port=9)], NOW)
    graph.ingest([replace(ASKED, operation=f"GET /{number}") for number in range(5)], NOW)
    assert list(asked(graph)) == ["GET /0", "GET /1", "GET /2", OTHER_OPERATIONS]
    graph.ingest([replace(ASKED, port=9)], NOW)
    assert list(asked(graph, EdgeKey(FRONT, CART, 9))) == [OTHER_OPERATIONS]
    graph.remove_edge(KEY)
    graph.ingest([replace(ASKED, port=9)], NOW)
    assert list(asked(graph, EdgeKey(FRONT, CART, 9))) == ["GET /cart/{id}", OTHER_OPERATIONS]


def test_operations_are_drained_when_they_change_and_when_they_go_and_load_again() -> None:
    graph = ServiceGraph()
    graph.ingest([IN, ASKED], NOW)
    drained = graph.drain_operations()
    assert drained == {KEY: edge(graph).operations}
    assert graph.drain_operations() == {}
    graph.ingest([OUT], NOW)
    assert graph.drain_operations() == {}, "connections alone change none"

    again = ServiceGraph(Limits(operations=1))
    again.load(graph.dump())
    again.load_operations({**drained, EdgeKey(DB, CART, 1): drained[KEY]})
    assert again.edges() == graph.edges()
    assert again.drain_operations() == {}, "what was loaded is stored"
    again.ingest([replace(ASKED, operation="GET /more")], NOW)
    assert OTHER_OPERATIONS in asked(again), "what was loaded takes places too"

    graph.remove_workload(CART, NOW)
    assert graph.drain_operations() == {KEY: ()}
    graph.ingest([replace(ASKED, last_seen=NOW)], NOW + 5)
    assert graph.shed.operations == 1
