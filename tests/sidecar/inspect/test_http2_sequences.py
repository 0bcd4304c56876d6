"""Random sequences of what HTTP/2 clients, applications and policies may do, through the lane in memory.

Both ends are h2's, which refuse to write what is not allowed and to read what is not. They read late, in any order, so
that what each says crosses what the other does. Whatever happens:

1. The application sees no request that the policy in force does not allow, and no body that the client did not send;
   a body ends where, and only if, its sender ended it. The same holds for responses, unless a request was refused.
2. Neither end is told anything that HTTP/2 does not allow, and a connection is not ended whose ends behave.
3. Every request is reported once. When all have said what they had to say, nothing of it is left.

Over 400 lines: two ends, what they may do and what is held against each step of theirs are one machine.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import pytest

from graph.model import Verdict
from sidecar.inspect.frame_guard import HEADERS, PREFACE
from tests.sidecar.inspect.connection import Kind, Memory, World, inspection, rule

PATHS = ("/a", "/b", "/c")
#: Sequences of a run of the test, and steps of each.
SEQUENCES, STEPS = 12, 60
RATES = ("opens", "resets", "early_resets", "settings", "pings", "updates", "empty_frames")
CODES = h2.settings.SettingCodes


@dataclass
class Message:
    """What was said of one message so far, by its sender or as its receiver knows it."""

    head: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] | None = None
    ended: bool = False


class Peer:
    """One end, which takes what came only when it :meth:`reads`.

    :ivar said: messages by stream; ``heard`` those of the other side
    :ivar over: streams that one of both has reset; ``left`` those that this one has
    """

    def __init__(self, leg: Memory, chance: random.Random, *, client: bool) -> None:
        self.leg = leg
        self.chance = chance
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.said: dict[int, Message] = {}
        self.heard: dict[int, Message] = {}
        self.over: set[int] = set()
        self.left: set[int] = set()
        self.owed: dict[int, int] = {}
        self.unread = bytearray()
        self.preface = not client  # is to come
        self.settings_out = True  # ours were not acknowledged
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.finished = False
        self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.finished:
            self.leg.give(data, self.chance.choice((0, 0, 0, 7, 100)))

    def reads(self) -> None:
        self.unread += self.leg.read()
        if self.preface and len(self.unread) >= len(PREFACE):
            self.h2.receive_data(bytes(self.unread[: len(PREFACE)]))
            del self.unread[: len(PREFACE)]
            self.preface = False
        while len(self.unread) >= 9 and len(self.unread) >= (size := 9 + int.from_bytes(self.unread[:3])):
            # one frame at a time: h2 looks at its own settings only between two calls
            frame = bytes(self.unread[:size])
            del self.unread[:size]
            stream = int.from_bytes(frame[5:9])
            if frame[3] == HEADERS and stream in self.left:
                self.h2.decoder.decode(frame[9:])  # h2 can not read an interim response to a stream that it has reset
                continue
            for event in self.h2.receive_data(frame):
                self._hear(event)
        self.flush()

    def _hear(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            assert event.stream_id not in self.heard
            self.heard[event.stream_id] = Message(dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.heard[event.stream_id].body += event.data
            self.owed[event.stream_id] = self.owed.get(event.stream_id, 0) + event.flow_controlled_length
        elif isinstance(event, h2.events.TrailersReceived):
            self.heard[event.stream_id].trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.heard[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.over.add(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
        elif isinstance(event, h2.events.SettingsAcknowledged):
            self.settings_out = False

    def grants(self) -> None:
        """Give windows for what came."""
        for stream, size in self.owed.items():
            if size:
                self.h2.acknowledge_received_data(size, stream)
        self.owed.clear()
        self.flush()

    def speaking(self) -> list[int]:
        """Streams on which it may go on."""
        return [stream for stream, said in self.said.items() if not said.ended and stream not in self.over]

    def alive(self) -> list[int]:
        """Streams that are not over for both."""
        states = self.h2.streams
        return [n for n, one in states.items() if one.state_machine.state is not h2.stream.StreamState.CLOSED]

    def says(self, stream: int, size: int, *, end: bool) -> None:
        """Send some of a body, as much as there is a window for."""
        size = max(0, min(size, self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size) - 9)
        if self.h2.local_flow_control_window(stream) < 0:
            return
        data = self.chance.randbytes(size)
        padding = self.chance.choice((None, None, 0, 5)) if size else None
        self.h2.send_data(stream, data, end_stream=end, pad_length=padding)
        self.said[stream].body += data
        self.said[stream].ended = end
        self.flush()

    def says_trailers(self, stream: int) -> None:
        trailers = {"x-sum": str(self.chance.random())}
        self.h2.send_headers(stream, list(trailers.items()), end_stream=True)
        self.said[stream].trailers, self.said[stream].ended = trailers, True
        self.flush()

    def resets(self, stream: int) -> None:
        self.h2.reset_stream(stream, self.chance.choice((0, 2, 8, 11)))
        self.over.add(stream)
        self.left.add(stream)
        self.flush()

    def changes_settings(self) -> None:
        choices: dict[CODES, tuple[int, ...]] = {
            CODES.INITIAL_WINDOW_SIZE: (0, 10, 1000, 65_535, 200_000),
            CODES.HEADER_TABLE_SIZE: (0, 100, 4096, 65_536),
            CODES.MAX_FRAME_SIZE: (16_384, 100_000),
            CODES.MAX_CONCURRENT_STREAMS: (0, 1, 3, 100),
        }
        name = self.chance.choice(list(choices))
        self.sets({name: self.chance.choice(choices[name])})

    def sets(self, settings: dict[CODES, int]) -> bool:
        """Change settings, unless others wait for being acknowledged: h2 takes one acknowledgement for all."""
        if self.settings_out:
            return False
        self.settings_out = True
        self.h2.update_settings(settings)
        self.flush()
        return True

    def pings(self) -> None:
        self.h2.ping(self.chance.randbytes(8))
        self.flush()


class Sequence:
    """One connection and all that happens to it."""

    def __init__(self, seed: int, trouble: list[str]) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.trouble = trouble
        window, total = self.chance.choice(((65_535, 65_535), (100_000, 131_072), (262_144, 1 << 20)))
        self.world = World(
            (rule(),), hub=inspection(**dict.fromkeys(RATES, 1_000_000), stream_window=window, connection_window=total)
        )
        self.allowed = frozenset(PATHS)
        self.one = self.world.connect(Kind.HTTP2)
        self.client = Peer(self.one.client, self.chance, client=True)
        self._application: Peer | None = None
        self.opened = 0

    # --- the policy

    def changes_policy(self) -> None:
        if self.one.server is not None:
            self.one.server.unblock()  # what was written to it was allowed until now
            self.looks()
        self.allowed = frozenset(self.chance.sample(PATHS, self.chance.randrange(len(PATHS) + 1)))
        if self.chance.random() < 0.5:
            denied = [rule(f"GET {p}", f"POST {p}", name="d", effect=Verdict.DENY) for p in set(PATHS) - self.allowed]
            self.world.policy(*denied, rule())
        else:
            self.world.policy(*(rule(f"GET {path}", f"POST {path}") for path in self.allowed), rule("GET /other"))

    # --- the client

    def opens(self) -> None:
        if self.client.h2.open_outbound_streams >= self.client.h2.remote_settings.max_concurrent_streams:
            return
        stream = self.client.h2.get_next_available_stream_id()
        end = self.chance.random() < 0.4
        method, path = "GET" if end else "POST", self.chance.choice(PATHS)
        fields = [("x-n", str(stream)), ("x-fill", "f" * self.chance.choice((1, 1, 1, 100, 100, 30_000)))]
        head = [(":method", method), (":scheme", "http"), (":authority", "cart"), (":path", path), *fields]
        self.client.said[stream] = Message(dict(head), ended=end)
        self.opened += 1
        self.client.h2.send_headers(stream, head, end_stream=end)
        self.client.flush()
        self.looks()

    # --- the application

    @property
    def application(self) -> Peer | None:
        if self._application is None and self.one.server is not None:
            self._application = Peer(self.one.server, self.chance, client=False)
        return self._application

    def looks(self) -> None:
        """The application reads, and what it sees for the first time has to be allowed now."""
        application = self.application
        if application is None:
            return
        before = set(application.heard)
        application.reads()
        for stream in application.heard.keys() - before:
            assert application.heard[stream].head[":path"] in self.allowed, "a request that is not allowed"

    def answers(self) -> None:
        application = self.application
        if application is None:
            return
        waiting = [n for n in application.heard if n not in application.said and n not in application.over]
        if not waiting:
            return
        stream = self.chance.choice(waiting)
        if self.chance.random() < 0.2:
            application.h2.send_headers(stream, [(":status", "103"), ("link", "</x>")])
            application.flush()
            return
        end = self.chance.random() < 0.3
        head = [(":status", "200"), ("x-n", application.heard[stream].head["x-n"]), ("x-fill", "g" * 100)]
        application.said[stream] = Message(dict(head), ended=end)
        application.h2.send_headers(stream, head, end_stream=end)
        application.flush()

    # --- both

    def somebody(self) -> Peer:
        return self.application or self.client if self.chance.random() < 0.5 else self.client

    def goes_on(self) -> None:
        peer = self.somebody()
        if speaking := peer.speaking():
            size = self.chance.choice((0, 1, 50, 3000, 20_000))
            peer.says(self.chance.choice(speaking), size, end=self.chance.random() < 0.3)

    def adds_trailers(self) -> None:
        peer = self.somebody()
        if speaking := peer.speaking():
            peer.says_trailers(self.chance.choice(speaking))

    def resets(self) -> None:
        peer = self.somebody()
        if alive := peer.alive():
            peer.resets(self.chance.choice(alive))

    def grants(self) -> None:
        self.somebody().grants()

    def grants_more(self) -> None:
        peer = self.somebody()
        peer.h2.increment_flow_control_window(self.chance.randrange(1, 1000))
        if alive := peer.alive():
            peer.h2.increment_flow_control_window(self.chance.randrange(1, 1000), self.chance.choice(alive))
        peer.flush()

    def reads(self) -> None:
        if self.chance.random() < 0.5:
            self.client.reads()
        else:
            self.looks()

    def changes_settings(self) -> None:
        self.somebody().changes_settings()

    def pings(self) -> None:
        self.somebody().pings()

    def stands_still(self) -> None:
        """What is written to one end waits."""
        self.somebody().leg.blocked = True

    def moves_again(self) -> None:
        self.client.leg.unblock()
        if self.one.server is not None:
            self.one.server.unblock()

    # --- all of it

    def step(self) -> None:
        does: dict[Callable[[], None], int] = {
            self.opens: 6,
            self.goes_on: 12,
            self.answers: 8,
            self.adds_trailers: 2,
            self.resets: 2,
            self.grants: 4,
            self.grants_more: 2,
            self.reads: 8,
            self.changes_settings: 2,
            self.pings: 1,
            self.stands_still: 1,
            self.moves_again: 3,
            self.changes_policy: 2,
        }
        (what,) = self.chance.choices(list(does), list(does.values()))
        self.looks()  # whatever is there was allowed under the policy of before
        what()
        self.check()

    def check(self) -> None:
        assert not self.trouble, self.trouble
        for peer in (self.client, self._application):
            if peer is not None:
                assert peer.goaway is None, peer.goaway
                assert not peer.leg.closed
                assert not peer.leg.write_ended
        application = self._application
        if application is None:
            return
        for stream, heard in application.heard.items():
            said = self.client.said[int(heard.head["x-n"])]
            assert {name: heard.head[name] for name in said.head} == said.head
            compare(said, heard)
            answer = application.said.get(stream)
            seen = self.client.heard.get(int(heard.head["x-n"]))
            if seen is not None and seen.head[":status"] == "200":
                assert answer is not None
                compare(answer, seen)

    def ends(self) -> None:
        """All say what they had to say; then nothing is left."""
        self.moves_again()
        for peer in (self.client, self.application):
            if peer is not None:
                peer.reads() if peer is self.client else self.looks()
                assert peer.sets({CODES.INITIAL_WINDOW_SIZE: 65_535, CODES.MAX_CONCURRENT_STREAMS: 100})
        for _ in range(1000):
            self.client.reads()
            self.client.grants()
            self.looks()
            application = self.application
            if application is not None:
                application.grants()
            before = len(application.said) if application is not None else 0
            self.answers()
            peers = [peer for peer in (self.client, application) if peer is not None]
            if not any(self._says_the_end(peer) for peer in peers) and not self._waiting() and before == self._answered:
                break
        self.client.reads()
        self.looks()
        self.client.reads()
        self.check()
        for stream in self.client.said:
            seen = self.client.heard.get(stream)
            assert stream in self.client.over or (seen is not None and seen.ended), f"{stream} never ended"
        self.left_nothing()

    @property
    def _answered(self) -> int:
        return len(self._application.said) if self._application is not None else 0

    def _waiting(self) -> bool:
        application = self._application
        return application is not None and any(
            n not in application.said and n not in application.over for n in application.heard
        )

    @staticmethod
    def _says_the_end(peer: Peer) -> bool:
        speaking = peer.speaking()
        for stream in speaking:
            peer.says(stream, 10, end=True)
        return bool(speaking)

    def left_nothing(self) -> None:
        layers = self.one.lane.layers
        assert not layers.streams
        for half in (layers.client, layers.server):
            if half is not None:
                assert not half.streams
                assert not half._owed
                assert not any(half.h2_conn.stream_buffers.values())
                assert not half.h2_conn.stream_buffers
                assert not half.h2_conn.stream_trailers
        if layers.server is not None:
            assert not layers.server.our_stream_id
            assert not layers.server.their_stream_id
            assert not layers.server.stream_queue
        assert len(self.world.flows.requests) == self.opened

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self.step()
            self.ends()
        except BaseException as error:
            error.add_note(f"seed {self.seed}")
            raise
        finally:
            self.world.close()


def compare(said: Message, heard: Message) -> None:
    """What came is what was sent, as far as it came."""
    assert said.body.startswith(heard.body)
    if heard.ended:
        assert said.ended
        assert said.body == heard.body
        assert said.trailers == heard.trailers
    if heard.trailers is not None:
        assert said.trailers == heard.trailers


@pytest.fixture
def trouble():
    """What the lane complains of."""
    said: list[str] = []

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage() + (str(record.exc_info[1]) if record.exc_info else ""))

    hear = Hear(logging.WARNING)
    log = logging.getLogger("sidecar.inspect")
    log.addHandler(hear)
    yield said
    log.removeHandler(hear)


@pytest.mark.parametrize("part", range(4))
async def test_whatever_both_ends_and_the_policy_do(trouble, part):
    for seed in range(part * SEQUENCES, (part + 1) * SEQUENCES):
        Sequence(seed, trouble).run(STEPS)
        await asyncio.sleep(0)  # what was put off is done
