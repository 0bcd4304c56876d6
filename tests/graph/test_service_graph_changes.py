"""Changes are found by generation: who follows them has the same graph, and what did not change is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.flow import EdgeKey, Flow
from graph.model import Instance, Workload, WorkloadRef
from graph.service_graph import OTHER_ADDRESSES, Limits, ServiceGraph
from graph.views import EdgeView, GraphChanges, NodeView
from tests.graph.reports import CART, DB, FRONT, KEY, NOW, OUT, outside, small_flows


def test_changes_tell_what_changed_and_nothing_else() -> None:
    graph = ServiceGraph()
    assert graph.changes(0) == GraphChanges(0)
    graph.ingest([OUT], NOW)
    first = graph.generation
    assert graph.changes(first) == GraphChanges(first)
    other = replace(OUT, destination=DB, port=5432)
    graph.ingest([other], NOW)
    changes = graph.changes(first)
    assert [view.key for view in changes.edges] == [other.edge]
    assert [view.ref for view in changes.nodes] == [DB]
    assert not changes.whole
    everything = graph.changes(0)
    assert len(everything.edges) == 2
    assert len(everything.nodes) == 3


def test_what_changes_nothing_is_no_change() -> None:
    graph = ServiceGraph()
    workload, instance = Workload(CART), Instance("cart-0", CART, "10.0.0.1")
    graph.put_workload(workload)
    graph.put_instance(instance)
    before = graph.generation
    graph.put_workload(workload)
    graph.put_instance(instance)
    graph.ingest([], NOW)
    graph.remove_workload(DB, NOW)
    assert not graph.remove_edge(KEY)
    assert graph.generation == before


def test_changes_since_a_time_that_is_forgotten_are_everything() -> None:
    graph = ServiceGraph(Limits(removals=2))
    graph.ingest([replace(OUT, source=outside(number)) for number in range(1, 5)], NOW)
    before = graph.generation
    graph.remove_edge(replace(KEY, source=outside(1)))
    assert not graph.changes(before).whole
    graph.remove_edge(replace(KEY, source=outside(2)))
    changes = graph.changes(before)
    assert changes.whole
    assert {view.key.source for view in changes.edges} == {outside(3), outside(4)}
    assert graph.changes(graph.generation + 5).whole, "a generation of another life"


def test_unchanged_views_are_the_same_objects() -> None:
    graph = ServiceGraph()
    other = replace(OUT, destination=DB)
    graph.ingest([OUT, other], NOW)
    before = {view.key: view for view in graph.edges()}
    graph.ingest([OUT], NOW)
    after = {view.key: view for view in graph.edges()}
    assert after[other.edge] is before[other.edge]
    assert after[KEY] is not before[KEY]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, object]]:
    refs = st.sampled_from([FRONT, CART, DB])
    step = st.one_of(
        st.tuples(st.just("flow"), small_flows),
        st.tuples(st.just("put"), refs),
        st.tuples(st.just("remove"), refs),
        st.tuples(st.just("forget"), st.floats(0, 1e10)),
        st.tuples(st.just("start"), refs),
        st.tuples(st.just("stop"), refs),
    )
    return draw(st.lists(step, max_size=25))


@given(histories())
def test_a_follower_of_changes_holds_the_same_graph(history: list[tuple[str, object]]) -> None:
    graph = ServiceGraph(Limits(external=2, unknown=2, edges=6, removals=4))
    nodes: dict[WorkloadRef, NodeView] = {}
    edges: dict[EdgeKey, EdgeView] = {}
    generation = 0
    for step, (what, value) in enumerate(history):
        match what, value:
            case "flow", Flow():
                graph.ingest([value], 1e10)
            case "put", WorkloadRef():
                graph.put_workload(Workload(value, kind=f"Kind{step % 2}"))
            case "remove", WorkloadRef():
                graph.remove_workload(value, 5.0)
            case "start", WorkloadRef():
                graph.put_instance(Instance(value.name, value, "10.0.0.1"))
            case "stop", WorkloadRef():
                graph.remove_instance(value.namespace, value.name)
            case "forget", float():
                for view in graph.edges():
                    if view.last_seen < value:
                        assert graph.remove_edge(view.key)
            case _:
                pytest.fail(f"{what} {value!r}")
        if step % 3:
            continue  # a follower misses some
        changes = graph.changes(generation)
        if changes.whole:
            nodes.clear()
            edges.clear()
        for ref in changes.removed_nodes:
            nodes.pop(ref, None)
        for key in changes.removed_edges:
            edges.pop(key, None)
        nodes |= {view.ref: view for view in changes.nodes}
        edges |= {view.key: view for view in changes.edges}
        generation = changes.generation
        assert sorted(nodes) == [view.ref for view in graph.nodes()]
        assert [nodes[ref] for ref in sorted(nodes)] == list(graph.nodes())
        assert [edges[key] for key in sorted(edges)] == list(graph.edges())
        assert {end for key in edges for end in (key.source, key.destination)} <= set(nodes)
        outsiders = [ref for ref in nodes if ref.is_external and ref != OTHER_ADDRESSES]
        assert len(outsiders) <= 2
        assert len(edges) <= 6
