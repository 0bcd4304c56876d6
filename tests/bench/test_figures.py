"""Ratios are taken within a round, and the document says what was found and nothing more."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.dataplane.figures import Ratio, best, compare, document, holds, row, skipped, table
from bench.dataplane.measures import (
    AGAIN,
    DIRECT,
    ENVOY_CONNECT,
    ENVOY_HTTP,
    ENVOY_TCP,
    HAPROXY_HTTP,
    HAPROXY_TCP,
    LOADS,
    MEASURES,
    OURS,
    QUIET,
    Better,
    Requirement,
    loads_of,
)

FIGURES = {
    OURS: [130.0, 260.0, 100.0],
    AGAIN: [130.0, 200.0, 125.0],
    DIRECT: [1000.0, 2000.0, 1500.0],
    ENVOY_TCP: [90.0, 200.0, 80.0],
    ENVOY_CONNECT: [100.0, 150.0, 60.0],
    HAPROXY_TCP: [50.0, 100.0, 40.0],
}


def test_the_best_peer_is_the_best_of_each_round() -> None:
    names = (ENVOY_TCP, ENVOY_CONNECT, HAPROXY_TCP)
    assert best(FIGURES, names, Better.HIGHER) == [100.0, 200.0, 80.0]
    assert best(FIGURES, names, Better.LOWER) == [50.0, 100.0, 40.0]


def test_a_peer_without_figures_is_no_best() -> None:
    with pytest.raises(ValueError, match=f"no figures of {HAPROXY_HTTP}"):
        best(FIGURES, (ENVOY_TCP, HAPROXY_HTTP), Better.HIGHER)
    with pytest.raises(ValueError, match="zip"):
        best(FIGURES | {HAPROXY_TCP: [1.0]}, (ENVOY_TCP, HAPROXY_TCP), Better.HIGHER)


def test_ratios_are_of_the_same_round() -> None:
    """Not of medians: a phase in which everything is slow does not count."""
    assert compare([10.0, 100.0, 1000.0], [10.0, 50.0, 2000.0]) == Ratio(1.0, 0.5, 2.0)


@pytest.mark.parametrize(("ours", "theirs"), [([0.0], [1.0]), ([1.0], [0.0]), ([-1.0], [1.0]), ([], [])])
def test_no_ratio_is_made_of_nothing(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"none|without a round"):
        compare(ours, theirs)


@given(st.lists(st.floats(0.1, 1e9), min_size=1, max_size=12), st.floats(0.01, 100))
def test_a_common_factor_gives_that_ratio(values: list[float], factor: float) -> None:
    ratio = compare([value * factor for value in values], values)
    assert ratio.least <= ratio.median <= ratio.most
    assert ratio.median == pytest.approx(factor)


@pytest.mark.parametrize(
    ("better", "median", "met"),
    [(Better.HIGHER, 1.3, True), (Better.HIGHER, 1.29, False), (Better.LOWER, 1.3, True), (Better.LOWER, 1.31, False)],
)
def test_which_side_of_the_target_is_good(better: Better, median: float, met: bool) -> None:
    assert holds(Ratio(median, 0.0, 9.0), Requirement((ENVOY_TCP,), 1.3), better) is met


def test_a_row_has_what_issue_4_asks_for() -> None:
    found = row(MEASURES["stream_rps"], FIGURES)
    assert found["ours"] == FIGURES[OURS]
    assert set(found["peers"]) == {ENVOY_TCP, ENVOY_CONNECT, HAPROXY_TCP}
    assert found["ratio"] == {"median": 1.3, "min": 1.25, "max": 1.3}
    assert (found["target"], found["met"], found["better"]) == (1.3, True, "higher")
    assert found["noise"] == {"median": 1.0, "min": 0.8, "max": 1.3}
    assert found["direct"] == FIGURES[DIRECT]


def test_every_requirement_of_a_row_has_to_hold() -> None:
    measure = MEASURES["http_rps"]
    met = row(measure, {OURS: [120.0], HAPROXY_HTTP: [100.0], ENVOY_HTTP: [40.0]})
    assert met["met"]
    assert [each["met"] for each in met["requirements"]] == [True, True]
    missed = row(measure, {OURS: [120.0], HAPROXY_HTTP: [100.0], ENVOY_HTTP: [41.0]})
    assert not missed["met"]
    assert [each["met"] for each in missed["requirements"]] == [True, False]
    assert missed["ratio"]["median"] == 1.2  # the first one's


def test_processor_time_is_kept_beside_and_compared_with_who_needs_least() -> None:
    cpu = {OURS: [20.0, 40.0, 20.0], ENVOY_TCP: [25.0, 40.0, 30.0], ENVOY_CONNECT: [16.0, 80.0, 20.0]}
    whole = cpu | {HAPROXY_TCP: [100.0] * 3, HAPROXY_HTTP: [1.0] * 3}
    found = row(MEASURES["stream_rps"], FIGURES, whole)
    assert set(found["cpu"]) == {OURS, ENVOY_TCP, ENVOY_CONNECT, HAPROXY_TCP}
    line = table(document("abc", {}, 3, [found], capture=True)).splitlines()[1]
    assert line.split()[-2:] == ["1.00", ENVOY_CONNECT]  # of 20 ÷ 16, 40 ÷ 40, 20 ÷ 20
    assert "cpu" not in row(MEASURES["stream_rps"], FIGURES)
    partly = row(MEASURES["stream_rps"], FIGURES, cpu)
    assert table(document("abc", {}, 3, [partly], capture=True)).splitlines()[1].split()[-2] == "–"


def test_it_says_whether_peers_were_captured() -> None:
    assert document("abc", {}, 3, [], capture=True)["capture"] == "equal"
    assert document("abc", {}, 3, [], capture=False)["capture"] == "ours-only"


def test_what_was_skipped_is_not_met_and_says_why() -> None:
    found = skipped(MEASURES["grpc_rps"], "the lane is not there")
    assert (found["met"], found["skipped"], found["ours"], found["ratio"]) == (False, "the lane is not there", [], None)
    text = table(document("abc", {}, 3, [found], capture=True))
    assert "the lane is not there" in text


def test_the_document_and_its_table() -> None:
    rows = [
        row(MEASURES["stream_rps"], FIGURES),
        row(MEASURES["stream_p99"], FIGURES),
        skipped(MEASURES["grpc_rps"], "no"),
    ]
    found = json.loads(json.dumps(document("abc", {"cpus": 2}, 3, rows, capture=True)))
    assert found["commit"] == "abc"
    assert found["machine"] == {"cpus": 2}
    assert found["rounds"] == 3
    assert found["noise"] == {"min": 0.8, "max": 1.3}
    lines = table(found).splitlines()
    assert " met " in lines[1]
    assert "NOT MET" in lines[2]


def test_no_noise_is_claimed_that_was_not_measured() -> None:
    figures = {name: values for name, values in FIGURES.items() if name != AGAIN}
    assert "noise" not in document("abc", {}, 3, [row(MEASURES["stream_rps"], figures)], capture=True)


def test_the_table_of_measures_is_issue_4s() -> None:
    targets = {
        name: [(set(one.against), one.factor) for one in measure.requirements] for name, measure in MEASURES.items()
    }
    stream = {ENVOY_TCP, ENVOY_CONNECT, HAPROXY_TCP}
    assert targets == {
        "stream_rps": [(stream, 1.3)],
        "stream_rps_8": [(stream, 1.1)],
        "http_rps": [({HAPROXY_HTTP}, 1.2), ({ENVOY_HTTP}, 3.0)],
        "stream_p99": [(stream, 0.8)],
        "http_p99": [({HAPROXY_HTTP, ENVOY_HTTP}, 0.8)],
        "single_p50": [({ENVOY_TCP, HAPROXY_TCP}, 1.15)],
        "conn_rate": [({ENVOY_CONNECT}, 1.3), ({HAPROXY_HTTP}, 0.8)],
        "bulk": [(stream, 0.8)],
        "cpu_per_request": [(stream, 0.9)],
        "rss_idle": [({ENVOY_TCP, ENVOY_CONNECT}, 0.8)],
        "rss_10k": [({ENVOY_TCP, ENVOY_CONNECT}, 1.0)],
        "inspect_rps": [({"mitmdump"}, 1.5)],
        "telemetry_cost": [({QUIET}, 0.97)],
        "grpc_rps": [({ENVOY_HTTP}, 1.2)],
    }


def test_every_load_brings_the_pairs_that_its_measures_compare() -> None:
    for load, pairs in loads_of(list(MEASURES.values())):
        assert pairs[:2] == (OURS, AGAIN)
        assert set(pairs[2:]) <= set(load.peers)
        for measure in MEASURES.values():
            if measure.load == load.name:
                assert {name for one in measure.requirements for name in one.against} <= set(pairs)


def test_only_what_is_wanted_is_measured() -> None:
    loads = loads_of([MEASURES["bulk"], MEASURES["rss_idle"]])
    assert [load.name for load, _ in loads] == ["bulk"]
    stream = dict(loads_of([MEASURES["stream_rps"]]))
    assert QUIET not in stream[LOADS["stream-32"]]
    assert replace(LOADS["bulk"], connections=2) not in dict(loads)
