"""Metrics of several processes, added up, are those of one process that saw everything."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.metrics.istio import NAMES, IstioMetrics
from sidecar.metrics.registry import Registry
from sidecar.metrics.sums import NoSums, Telling, add
from tests.sidecar.metrics.records import DENIED, LEARNING, record, refused, request


def page(istio):
    registry = Registry()
    registry.add(istio, *NAMES)
    return sorted(b"".join(registry.pieces()).decode().splitlines())


def see(istio, what, live):
    """One event of a process."""
    if what == "open":
        live.append(record(decision=LEARNING, protocol="tcp"))
        istio.opened(live[-1])
    elif what == "refused":
        istio.opened(refused())
    elif what == "request" and live:
        istio.request(request(live[-1]))
    elif what == "denied" and live:
        istio.request(request(live[-1], status=403, decision=DENIED))
    elif what == "bytes" and live:
        live[0].bytes_sent += 10
        live[0].bytes_received += 1000
    elif what == "messages" and live:
        live[-1].request_messages += 1
        live[0].response_messages += 3
    elif what == "close" and live:
        one = live.pop(0)
        one.closed = True
        istio.closed(one)


EVENTS = st.sampled_from(["open", "open", "refused", "request", "denied", "bytes", "messages", "close", "tell"])


@given(st.lists(st.tuples(st.booleans(), EVENTS), max_size=60))
def test_the_sum_is_what_one_process_would_show(events):
    """Connections of two processes differ, so the one that sees everything keeps two lists of them."""
    parts = IstioMetrics(), IstioMetrics()
    live = [], []
    whole, whole_live = IstioMetrics(), ([], [])
    tellings = [Telling(one) for one in parts]
    total = IstioMetrics()

    def tell(which):
        for _ in tellings[which].settle():
            pass
        told = json.loads(json.dumps(tellings[which].take()))
        add(total, told)
        return told

    for which, what in events:
        if what == "tell":
            tell(which)
            assert tell(which) == {}, "nothing is told twice"
            # settling fixes what a connection counts as; the other must have looked at the same moments
            for _ in whole.settle():
                pass
        else:
            see(parts[which], what, live[which])
            see(whole, what, whole_live[which])
            for other in (*parts, whole):
                for _ in other.settle():
                    pass
    for which in (False, True):
        tell(which)
    assert page(total) == page(whole)
    assert (total.refused, total.refused_requests) == (whole.refused, whole.refused_requests)
    assert total.would_refuse == whole.would_refuse


def told_once():
    istio = IstioMetrics()
    live = record()
    istio.opened(live)
    istio.opened(record(request_messages=2, response_messages=1, closed=True))
    istio.opened(refused())
    istio.request(request(live))
    istio.request(request(live, status=403, decision=DENIED))
    return Telling(istio).take()


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["requests"][0].pop(),
        lambda told: told["requests"][0][0].pop(),
        lambda told: told["requests"][0][0].__setitem__(0, "inbound"),
        lambda told: told["requests"][0][0].__setitem__(12, "200"),
        lambda told: told["requests"][0][1].__setitem__(0, -1),
        lambda told: told["requests"][0][1].__setitem__(-1, float("nan")),
        lambda told: told["requests"][0][1].pop(),
        lambda told: told["tcp"][0].__setitem__(1, 1.5),
        lambda told: told["tcp"][0].pop(),
        lambda told: told.__setitem__("tcp", 1),
        lambda told: told["messages"][0].pop(),
        lambda told: told["messages"][0].append(1),
        lambda told: told["messages"][0].__setitem__(1, -1),
        lambda told: told["messages"][0].__setitem__(2, 1.5),
        lambda told: told["messages"][0][0].__setitem__(9, "yes"),
        lambda told: told["refused"][0].insert(0, "x"),
        lambda told: told["refused"][0].__setitem__(-1, True),
        lambda told: told.__setitem__("would_refuse", -1),
    ],
)
def test_what_is_no_sum_is_refused(change):
    told = copy.deepcopy(told_once())
    add(IstioMetrics(), told)
    change(told)
    with pytest.raises(NoSums):
        add(IstioMetrics(), told)


def test_reasons_are_bounded():
    istio = IstioMetrics()
    with pytest.raises(NoSums, match="refused"):
        add(istio, {"refused": [["inbound", f"reason-{number}", 1] for number in range(1000)]})
    assert len(istio.refused) <= 256
