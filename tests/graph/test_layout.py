"""The layout puts callers left, opens cycles, and keeps the way of long edges free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graph.layout import place

NAMES = "abcdefg"
pairs = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=15)


def test_depth_is_the_longest_way() -> None:
    placed = place("abcd", [("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")])
    assert {name: spot[0] for name, spot in placed.nodes.items()} == {"a": 0, "b": 1, "c": 2, "d": 0}
    assert placed.layers == 3


def test_cycles_are_opened_where_most_calls_begin() -> None:
    placed = place("abc", [("b", "a"), ("b", "c"), ("a", "c"), ("c", "b")])
    assert [placed.nodes[name][0] for name in "bac"] == [0, 1, 2]
    assert place("a", [("a", "a")]).nodes == {"a": (0, 0.0)}


def test_long_edges_have_a_place_of_their_own_in_every_layer_between() -> None:
    placed = place("abcd", [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    route = placed.routes["a", "d"]
    assert [layer for layer, _ in route] == [1, 2]
    assert not {*route} & {*placed.nodes.values()}
    backward = place("abcd", [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")])
    assert [layer for layer, _ in backward.routes["d", "a"]] == [2, 1], "in the edge's own direction"


def test_nothing_is_a_layout_too() -> None:
    placed = place([], [])
    assert (placed.nodes, placed.layers, placed.rows) == ({}, 0, 0)


@given(pairs, st.randoms(use_true_random=False))
def test_every_node_has_a_place_of_its_own_that_depends_on_names_alone(
    edges: list[tuple[str, str]], random: object
) -> None:
    placed = place(NAMES, edges)
    assert set(placed.nodes) == set(NAMES)
    spots = [*placed.nodes.values(), *(spot for route in placed.routes.values() for spot in route)]
    assert len(set(spots)) == len(spots)
    assert all(0 <= layer < placed.layers and 0 <= row <= placed.rows for layer, row in spots)
    shuffled = [*edges, *edges]
    random.shuffle(shuffled)
    assert place(reversed(NAMES), shuffled) == placed


@given(pairs)
def test_without_cycles_every_caller_is_left(edges: list[tuple[str, str]]) -> None:
    forward = [(min(pair), max(pair)) for pair in edges if pair[0] != pair[1]]
    placed = place(NAMES, forward)
    for source, destination in forward:
        assert placed.nodes[source][0] < placed.nodes[destination][0]
