"""Places a directed graph in layers, callers left of what they call (after Sugiyama, Tagawa and Toda, 1981).

Cycles are opened by leaving out the edges that a depth-first walk finds leading back; a node's layer is the longest way
to it; an edge over several layers gets a waypoint in each; the order within a layer follows the mean of the neighbours.
The outcome depends on names alone, not on the order of the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Above this many waypoints, long edges are drawn straight: nobody reads such a picture edge by edge.
MAX_WAYPOINTS = 4_000
SWEEPS = 8

type _Spot = str | tuple[str, str, int]  # a node, or the waypoint of an edge in one layer


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything goes, in layers (columns) and rows that may be fractions.

    :param nodes: layer and row of each node
    :param routes: the waypoints between both ends of each edge, in its direction
    """

    nodes: Mapping[str, tuple[int, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[int, float], ...]]
    layers: int
    rows: int


def place(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> Placement:
    """Lay out ``nodes``; edges between others are an error (KeyError), edges from a node to itself are ignored."""
    names = sorted(set(nodes))
    pairs = sorted({pair for pair in edges if pair[0] != pair[1]})
    depth = _depths(names, pairs)
    spots: dict[_Spot, int] = dict(depth.items())
    chains: dict[tuple[str, str], list[_Spot]] = {}
    links: list[tuple[_Spot, _Spot]] = []
    for source, destination in pairs:
        left, right = sorted((source, destination), key=lambda name: depth[name])
        chain: list[_Spot] = [left]
        if len(spots) - len(depth) < MAX_WAYPOINTS:
            chain += [(source, destination, layer) for layer in range(depth[left] + 1, depth[right])]
        chain.append(right)
        spots |= {spot: depth[left] + offset for offset, spot in enumerate(chain[:-1])}
        links += pairwise(chain)
        chains[source, destination] = chain if left == source else chain[::-1]
    columns = _ordered(spots, links)
    rows = max((len(column) for column in columns), default=0)
    at = {
        spot: (layer, index + (rows - len(column)) / 2)
        for layer, column in enumerate(columns)
        for index, spot in enumerate(column)
    }
    return Placement(
        nodes={name: at[name] for name in names},
        routes={pair: tuple(at[spot] for spot in chain[1:-1]) for pair, chain in chains.items()},
        layers=len(columns),
        rows=rows,
    )


def _depths(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    following: dict[str, list[str]] = {name: [] for name in names}
    called = dict.fromkeys(names, 0)
    for source, destination in pairs:
        following[source].append(destination)
        called[destination] += 1
    finished: list[str] = []
    state: dict[str, int] = {}  # 1: on the present walk, 2: finished
    kept: dict[str, list[str]] = {name: [] for name in names}
    # those that nobody calls first; in a cycle, those that call more than they are called
    for root in sorted(names, key=lambda name: (called[name] > 0, called[name] - len(following[name]), name)):
        if root in state:
            continue
        state[root] = 1
        walk = [(root, iter(following[root]))]
        while walk:
            name, remaining = walk[-1]
            step = next(remaining, None)
            if step is None:
                state[name] = 2
                finished.append(name)
                walk.pop()
            elif state.get(step) != 1:  # else it leads back: left out
                kept[name].append(step)
                if step not in state:
                    state[step] = 1
                    walk.append((step, iter(following[step])))
    depth = dict.fromkeys(names, 0)
    for name in reversed(finished):  # callers before what they call
        for step in kept[name]:
            depth[step] = max(depth[step], depth[name] + 1)
    return depth


def _ordered(spots: Mapping[_Spot, int], links: Sequence[tuple[_Spot, _Spot]]) -> list[list[_Spot]]:
    columns: list[list[_Spot]] = [[] for _ in range(max(spots.values(), default=-1) + 1)]
    for spot in sorted(spots, key=str):
        columns[spots[spot]].append(spot)
    before: dict[_Spot, list[_Spot]] = {}
    after: dict[_Spot, list[_Spot]] = {}
    for left, right in links:
        if spots[left] != spots[right]:
            after.setdefault(left, []).append(right)
            before.setdefault(right, []).append(left)
    row: dict[_Spot, float] = {spot: index for column in columns for index, spot in enumerate(column)}
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for column in columns if forward else columns[::-1]:
            mean = {
                spot: sum(row[near] for near in neighbours[spot]) / len(neighbours[spot])
                if neighbours.get(spot)
                else row[spot]
                for spot in column
            }
            column.sort(key=lambda spot: (mean[spot], str(spot)))
            middle = (len(column) - 1) / 2
            row.update({spot: index - middle for index, spot in enumerate(column)})
    return columns
