"""While a connection drains or is to be watched its HTTP/2 client is asked to go, and what runs is finished."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import PORT, Bench
from tests.sidecar.http.h2_pair import GET, Pair, frame


class Told(Pair):
    """The client may see more than the application sent: ``farewells`` has the streams that each GOAWAY named. The h2
    package would take one for the end of everything."""

    def __init__(self, bench, cut=None):
        self.events, self.farewells = [], []
        self._came = b""
        super().__init__(bench, cut)

    def read(self):
        self._came += self.leg.take()
        while len(self._came) >= 9 and len(self._came) >= (size := 9 + int.from_bytes(self._came[:3])):
            one, self._came = self._came[:size], self._came[size:]
            if one[3] == 7:
                self.farewells.append((int.from_bytes(one[9:13]), int.from_bytes(one[13:17])))
            else:
                self.events += self.client.receive_data(one)

    def swap(self):
        while True:
            forth, back = self.client.data_to_send(), self.server.data_to_send()
            if not forth and not back:
                return
            if forth:
                self.feed(self.leg, forth)
                self.server.receive_data(self.bench.app.take())
            if back:
                self.feed(self.bench.app, back)
            self.read()


ONE_FAREWELL = [(0x7FFFFFFF, 0)]


@pytest.mark.parametrize("watched", [False, True])
async def test_while_draining_or_to_be_watched_the_client_is_asked_to_go_and_its_requests_are_finished(watched):
    bench = Bench()
    pair = Told(bench)
    pair.client.send_headers(1, GET, end_stream=True)
    pair.swap()
    bench.later(1)
    pair.read()
    assert pair.farewells == []
    bench.draining = not watched
    bench.tapped = {PORT} if watched else set()
    bench.later(1)
    pair.read()
    assert pair.farewells == ONE_FAREWELL
    bench.later(10)
    assert not pair.leg.did_end, "a request is under way"
    pair.server.send_headers(1, [(":status", "200")])
    pair.server.send_data(1, b"x" * 100, end_stream=True)
    pair.swap()
    assert [told.status for told in bench.flows.requests] == [200]
    bench.later(1)
    assert pair.leg.did_end
    assert bench.app.did_end
    bench.app.finish()
    pair.leg.finish()
    assert pair.leg.record.closed
    assert pair.farewells == ONE_FAREWELL


@given(st.integers(1, 70))
def test_the_client_is_asked_between_two_frames_however_they_are_cut(cut):
    bench = Bench()
    pair = Told(bench)
    pair.client.send_headers(1, GET, end_stream=True)
    pair.swap()
    pair.server.send_headers(1, [(":status", "200"), ("x", "y" * 30)])
    pair.server.send_data(1, b"z" * 20)
    pair.server.ping(b"12345678")
    pair.server.send_data(1, b"z" * 20)
    data = pair.server.data_to_send()
    bench.app.feed(data[:cut])
    bench.draining = True
    bench.later(1)
    if cut < len(data):
        bench.app.feed(data[cut:])
    pair.server.end_stream(1)
    pair.swap()
    assert pair.farewells == ONE_FAREWELL
    assert sum(len(event.data) for event in pair.events if isinstance(event, h2.events.DataReceived)) == 40
    bench.later(1)
    assert pair.leg.did_end


def test_the_application_speaks_first_also_while_draining():
    bench = Bench()
    bench.draining = True
    leg = bench.client(H2Lane)
    leg.feed(PREFACE + frame(4, 0, 0, b""))
    bench.later(1)
    assert leg.take() == b""
    settings = frame(4, 0, 0, b"\0\3\0\0\0\1")
    bench.app.feed(settings[:10])
    assert leg.take() == settings[:10]
    bench.app.feed(settings[10:] + frame(6, 0, 0, b"x" * 8))
    got = leg.take()
    assert got.startswith(settings[10:])
    assert got.count(frame(7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0")) == 1
