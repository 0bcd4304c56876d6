"""Choosing endpoints: fewer outstanding first, failed ones last, none forgotten."""

from __future__ import annotations

from collections import Counter
from random import Random

from graph.directory import Endpoint
from sidecar.dataplane.balance import CANDIDATES, Balancer

ENDPOINTS = tuple(Endpoint(f"10.0.0.{number}", 80, identity=f"id{number}") for number in range(1, 6))
MANY = tuple(Endpoint(f"10.1.{number >> 8}.{number & 255}", 80, identity=f"id{number}") for number in range(2000))


class Drawn(tuple[Endpoint, ...]):
    """Endpoints of which one after the other may be drawn, and which nobody looks through."""

    def __iter__(self):
        raise AssertionError("all were looked at")


def balancer(seed=1):
    return Balancer(Random(seed), backoff=0.1, longest=1.0)


def test_every_ready_endpoint_is_a_candidate_once():
    order = balancer().order(ENDPOINTS, 0.0)
    assert sorted(order, key=str) == sorted(ENDPOINTS, key=str)


def test_one_that_is_not_ready_is_none():
    tired = Endpoint("10.0.0.9", 80, ready=False)
    assert balancer().order([tired], 0.0) == []
    assert tired not in balancer().order([*ENDPOINTS, tired], 0.0)
    assert balancer().order([], 0.0) == []


def test_connections_that_stay_are_spread_evenly():
    loads = balancer()
    counts: Counter[str] = Counter()
    for _ in range(1000):
        chosen = loads.order(ENDPOINTS, 0.0)[0]
        loads.began(chosen)
        counts[chosen.address] += 1
    assert max(counts.values()) - min(counts.values()) <= 6  # one random choice would differ by about 60


def test_the_slow_one_gets_less():
    loads = balancer()
    slow = ENDPOINTS[0]
    for _ in range(50):
        loads.began(slow)
    chosen = Counter(loads.order(ENDPOINTS, 0.0)[0].address for _ in range(500))
    assert slow.address not in chosen
    for _ in range(50):
        loads.ended(slow)
    assert loads.outstanding(slow) == 0
    assert slow.address in Counter(loads.order(ENDPOINTS, 0.0)[0].address for _ in range(500))


def test_one_that_failed_comes_last_until_its_time_is_over_which_doubles():
    loads = balancer()
    bad = ENDPOINTS[0]
    now = 100.0
    for failure, seconds in enumerate([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], 1):
        loads.failed(bad, now)
        assert loads.retry_at(bad) == now + seconds, failure
        assert all(loads.order(ENDPOINTS, now + seconds * 0.99)[-1] is bad for _ in range(20))
        assert tried_first(loads, bad, now + seconds)
        now += 10
    loads.succeeded(bad)
    assert loads.retry_at(bad) == 0.0
    loads.failed(bad, now)
    assert loads.retry_at(bad) == now + 0.1


def tried_first(loads, endpoint, now, times=200):
    return any(loads.order(ENDPOINTS, now)[0] is endpoint for _ in range(times))


def test_one_that_returns_is_tried_by_one_connection_until_that_has_ended():
    loads = balancer()
    bad = ENDPOINTS[0]
    loads.failed(bad, 100.0)
    assert tried_first(loads, bad, 100.1), "the probe"
    assert all(loads.order(ENDPOINTS, 101.0)[-1] is bad for _ in range(200)), "the others keep away"
    assert tried_first(loads, bad, 105.2), "a probe that takes too long is followed by another"
    loads.failed(bad, 105.3)
    assert loads.retry_at(bad) == 105.3 + 0.2
    assert tried_first(loads, bad, 105.5)
    loads.succeeded(bad)
    assert sum(loads.order(ENDPOINTS, 105.5)[0] is bad for _ in range(200)) > 10, "it is one of them again"


def test_failures_of_connections_that_were_begun_before_count_as_one():
    loads = balancer()
    for number in range(100):
        loads.failed(ENDPOINTS[0], 100.0 + number / 10_000)
    assert loads.retry_at(ENDPOINTS[0]) == 100.1


def test_a_success_while_it_is_ejected_brings_it_back_at_once():
    loads = balancer()
    loads.failed(ENDPOINTS[0], 100.0)
    loads.succeeded(ENDPOINTS[0])
    assert tried_first(loads, ENDPOINTS[0], 100.0)


def test_when_all_failed_the_one_that_returns_first_is_tried():
    loads = balancer()
    for number, endpoint in enumerate(ENDPOINTS):
        loads.failed(endpoint, 100.0 + number / 100)
    assert loads.order(ENDPOINTS, 100.06) == list(ENDPOINTS)


def test_an_address_that_now_belongs_to_another_identity_starts_anew():
    loads = balancer()
    loads.failed(ENDPOINTS[0], 100.0)
    assert loads.retry_at(Endpoint(ENDPOINTS[0].address, 80, identity="other")) == 0.0


def test_failures_of_endpoints_that_are_gone_are_forgotten():
    loads = balancer()
    for number in range(10_000):
        loads.failed(Endpoint("10.1.1.1", number), float(number))
    assert len(loads._until) == len(loads._failures) <= 4097
    assert len(loads._probed) <= 4097


def test_a_choice_among_thousands_looks_at_a_few():
    loads, endpoints = balancer(), Drawn(MANY)
    for _ in range(200):
        order = loads.order(endpoints, 0.0)
        assert len({endpoint.key for endpoint in order}) == len(order) == CANDIDATES


def test_each_of_many_is_as_likely_as_any_other():
    some = MANY[:40]
    first = Counter(balancer(seed).order(some, 0.0)[0].address for seed in range(8000))
    assert len(first) == len(some)
    assert 130 < min(first.values()) <= max(first.values()) < 280  # 200 with a deviation of 14


def test_connections_that_stay_are_spread_evenly_over_many():
    loads = balancer()
    some = MANY[:50]
    counts: Counter[str] = Counter()
    for _ in range(5000):
        chosen = loads.order(some, 0.0)[0]
        loads.began(chosen)
        counts[chosen.address] += 1
    assert max(counts.values()) - min(counts.values()) <= 8


def test_of_many_the_slow_the_failed_and_the_tired_are_passed_over():
    loads = balancer()
    some = [*MANY[:8], *(Endpoint(f"10.2.0.{number}", 80, ready=False) for number in range(8))]
    loads.failed(some[0], 100.0)
    for _ in range(50):
        loads.began(some[1])
    for _ in range(500):
        order = loads.order(some, 100.05)
        assert order[0] is not some[1], "it has the most to do"
        assert all(endpoint.ready for endpoint in order)
        assert some[0] not in order[:CANDIDATES], "it is left alone"


def test_the_last_ones_of_many_that_can_be_tried_are_found():
    loads = balancer()
    tired = [Endpoint(f"10.2.{number >> 8}.{number & 255}", 80, ready=False) for number in range(1000)]
    for left in range(1, CANDIDATES + 2):
        some = [*tired, *MANY[:left]]
        found = loads.order(some, 0.0)
        assert len(found) == left
        assert set(found) == set(MANY[:left])
    for endpoint in MANY:
        loads.failed(endpoint, 100.0)
    assert len(loads.order(MANY, 100.05)) == len(MANY), "when all have failed all are tried"


def test_one_of_many_that_returns_is_tried_by_one_connection():
    loads = balancer()
    some = MANY[:8]
    loads.failed(some[0], 100.0)
    tried = [loads.order(some, 101.0)[0] is some[0] for _ in range(400)]
    assert tried.count(True) == 1
