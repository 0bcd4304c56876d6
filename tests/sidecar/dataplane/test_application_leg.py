"""What a client sees of an application that misbehaves, without the mesh and through every lane, as a table.

Each row is an application, a client and what the client sees of it without anything between them: bytes, and then the
end of the connection (``end``), a reset (``reset``), nothing more although the connection is open (``open``), or a
connection that is refused. The very same client then does the same through the sidecars, and sees the same, or what the
row says for that lane, with the reason. Without the mesh the row is measured, too, so that it is TCP's and not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tests.sidecar.dataplane.misbehaviour import (
    BIG,
    BODY,
    CHUNKS,
    CONTINUE,
    GET,
    HALF,
    LAST,
    POST,
    TOO_LARGE,
    UNTIL_END,
    WHOLE,
    Application,
    Scene,
    Seen,
    after_the_end,
    answers,
    at_once,
    big,
    close,
    continues,
    half_closes,
    listening,
    never_reads,
    nobody,
    not_accepting,
    refuses_late,
    reset,
    say,
    serves,
    speak_and_reset,
    speaks_after_the_end,
    speaks_first,
    stalls,
    unread,
)
from tests.sidecar.dataplane.planes import HTTP, INSPECTED, MESHED, STREAM, Planes, Way
from tests.sidecar.dataplane.witnesses import (
    Client,
    Script,
    asks,
    asks_and_finishes,
    asks_twice,
    goes_on_writing,
    listens,
    listens_and_finishes,
    pushes,
    reads_late,
    waits_for_continue,
)


@dataclass(frozen=True, slots=True)
class Row:
    """:param without: what the client sees without the mesh
    :param why: the reason that a proxy differs in this, when it does; what is seen then is in ``differs``
    """

    name: str
    application: Application
    client: Script
    without: Seen
    why: str = ""
    differs: Mapping[Way, Seen] = field(default_factory=dict)

    def expected(self, way: Way) -> Seen:
        return self.differs.get(way, self.without)


def differs(data: bytes, ending: str, *ways: Way) -> dict[Way, Seen]:
    return dict.fromkeys(ways, Seen(data, ending))


#: A connection is accepted before the application is asked whether it takes it.
ACCEPTED = "the sidecar has accepted before the application refuses"
#: Rule 5 of the lane.
KEPT = "the connection is the lane's: that the application ends an idle one is kept from the client"
#: The lane passes on what it has understood.
HEADS = "half of a head, or of the framing of a chunk, is not passed on"
RETRIED = "an idempotent request that met a connection's end is sent again on another one"
WHOLE_ANSWER = "the answer was whole, so its client hears the end in good order, whatever becomes of the application"

TABLE = [
    Row("it does not listen", nobody, asks(GET), Seen(b"", "refused"), ACCEPTED, differs(b"", "reset", *MESHED)),
    Row("it does not accept", not_accepting, asks(GET), Seen(b"", "open")),
    Row("it resets at once", unread(b"", reset), asks(GET), Seen(b"", "reset")),
    Row("it resets a client that says nothing", at_once(reset), listens, Seen(b"", "reset")),
    Row("it closes right after accept", at_once(close), listens, Seen(b"", "end")),
    Row("it closes and has not read the request", unread(b"", close), asks(GET), Seen(b"", "reset")),
    Row("it reads and closes without a word", answers(b"", close), asks(GET), Seen(b"", "end")),
    Row("it reads and resets without a word", answers(b"", reset), asks(GET), Seen(b"", "reset")),
    Row("it reads and says nothing", stalls(b""), asks(GET), Seen(b"", "open")),
    Row("it speaks first", speaks_first, listens_and_finishes, Seen(b"220 ready\r\n", "end")),
    Row("it speaks first and resets", at_once(speak_and_reset), listens, Seen(b"220 ready\r\n", "reset")),
    Row("it answers and keeps the connection", stalls(WHOLE), asks(GET), Seen(WHOLE, "open")),
    Row("it answers and closes, as it said", answers(LAST, close), asks(GET), Seen(LAST, "end")),
    Row("it answers and closes without saying so", answers(WHOLE, close), asks(GET), Seen(WHOLE, "end"),
        KEPT, differs(WHOLE, "open", *HTTP)),
    Row("it answers and resets", answers(WHOLE, reset), asks(GET), Seen(WHOLE, "reset"),
        KEPT, differs(WHOLE, "open", *HTTP)),
    Row("it answers until it closes", answers(UNTIL_END, close), asks(GET), Seen(UNTIL_END, "end")),
    Row("it answers until it resets", answers(UNTIL_END, reset), asks(GET), Seen(UNTIL_END, "reset")),
    Row("it closes in the middle of an answer", answers(HALF, close), asks(GET), Seen(HALF, "end")),
    Row("it resets in the middle of an answer", answers(HALF, reset), asks(GET), Seen(HALF, "reset")),
    Row("it stalls in the middle of an answer", stalls(HALF), asks(GET), Seen(HALF, "open")),
    Row("it closes between chunks", answers(CHUNKS, close), asks(GET), Seen(CHUNKS, "end")),
    Row("it resets between chunks", answers(CHUNKS, reset), asks(GET), Seen(CHUNKS, "reset")),
    Row("it closes in the framing of a chunk", answers(CHUNKS + b"1", close), asks(GET), Seen(CHUNKS + b"1", "end"),
        HEADS, differs(CHUNKS, "end", *HTTP, *INSPECTED)),
    Row("it closes in the middle of a head", answers(HALF[:20], close), asks(GET), Seen(HALF[:20], "end"),
        HEADS, differs(b"", "end", *HTTP, *INSPECTED)),
    Row("it resets in the middle of a head", answers(HALF[:20], reset), asks(GET), Seen(HALF[:20], "reset"),
        HEADS, differs(b"", "reset", *HTTP, *INSPECTED)),
    Row("it stalls in the middle of a head", stalls(HALF[:20]), asks(GET), Seen(HALF[:20], "open"),
        HEADS, differs(b"", "open", *HTTP, *INSPECTED)),
    Row("it sends much and resets before anything is read", big(reset), reads_late, Seen(BIG, "reset")),
    Row("it sends much and closes before anything is read", big(close), reads_late, Seen(BIG, "end")),
    Row("it half-closes and hears the client out", half_closes(UNTIL_END), goes_on_writing, Seen(UNTIL_END, "end")),
    Row("it half-closes in the middle of an answer", half_closes(HALF), asks_and_finishes, Seen(HALF, "end")),
    Row("it answers a client that has half-closed", after_the_end, asks_and_finishes, Seen(LAST, "end")),
    Row("it goes on behind its client's end", speaks_after_the_end, asks_and_finishes, Seen(HALF + BODY[5:], "end")),
    Row("it resets a client that has half-closed", answers(b"", reset), asks_and_finishes, Seen(b"", "reset")),
    Row("it answers a half-closed client by halves", answers(HALF, reset), asks_and_finishes, Seen(HALF, "reset")),
    Row("it never reads, and closes", never_reads(close), pushes, Seen(b"stuck", "reset")),
    Row("it never reads, and resets", never_reads(reset), pushes, Seen(b"stuck", "reset")),
    Row("it refuses a body that it has not read", unread(TOO_LARGE, close, head=True), asks(POST, BODY[:10]),
        Seen(TOO_LARGE, "reset"), WHOLE_ANSWER, differs(TOO_LARGE, "end", *HTTP)),
    Row("it refuses an upload and closes", refuses_late, pushes, Seen(b"stuck" + TOO_LARGE, "reset"),
        WHOLE_ANSWER, differs(b"stuck" + TOO_LARGE, "end", *HTTP)),
    Row("it closes in the middle of a body", answers(b"", close, body=10), asks(POST, BODY[:10]), Seen(b"", "end")),
    Row("it resets in the middle of a body", answers(b"", reset, body=10), asks(POST, BODY[:10]), Seen(b"", "reset")),
    Row("it asks for the body first", continues, waits_for_continue, Seen(CONTINUE + LAST, "end")),
    Row("it resets instead of a second answer to a POST", serves(say(WHOLE), reset, body=len(BODY)),
        asks_twice(POST + BODY), Seen(WHOLE, "reset")),
    Row("it closes instead of a second answer to a POST", serves(say(WHOLE), close, body=len(BODY)),
        asks_twice(POST + BODY), Seen(WHOLE, "end")),
    Row("it resets instead of a second answer to a GET", serves(say(WHOLE), reset), asks_twice(GET),
        Seen(WHOLE, "reset"), RETRIED, differs(WHOLE + WHOLE, "open", *HTTP)),
    Row("it closes instead of a second answer to a GET", serves(say(WHOLE), close), asks_twice(GET),
        Seen(WHOLE, "end"), RETRIED, differs(WHOLE + WHOLE, "open", *HTTP)),
]  # fmt: skip


def look(row: Row, way: Way, port: int, scene: Scene) -> Seen:
    client = Client(port, scene, row.expected(way))
    try:
        row.client(client)
        return client.seen()
    finally:
        scene.over.set()
        client.sock.close()


async def measure(authority, row: Row) -> dict[Way, Seen]:
    """What is seen each way, of an application that nobody else asks."""
    scenes = {way: Scene() for way in Way}
    with contextlib.ExitStack() as running:
        ports = {way: running.enter_context(listening(row.application, scenes[way])) for way in Way}
        async with Planes(authority, ports) as planes:
            looks = (asyncio.to_thread(look, row, way, planes.entrances[way], scenes[way]) for way in Way)
            seen = dict(zip(Way, await asyncio.gather(*looks), strict=True))
            await asyncio.to_thread(running.close)  # its threads may need the planes to end
            await planes.settled()
            lanes = planes.lanes()
    opaque = {"", "tcp"}
    for way in MESHED:
        looked_at = way not in STREAM and row.client not in (listens, listens_and_finishes)
        assert lanes[way], way
        assert lanes[way] <= ({"http"} if looked_at else opaque), way
    return seen


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_a_client_sees_what_it_would_have_seen(authority, row):
    assert await measure(authority, row) == {way: row.expected(way) for way in Way}


def test_every_difference_has_a_reason():
    for row in TABLE:
        assert bool(row.why) is bool(row.differs), row.name
        assert Way.DIRECT not in row.differs
        assert all(seen != row.without for seen in row.differs.values()), row.name
