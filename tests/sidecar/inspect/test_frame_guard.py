"""The guard in front of HTTP/2: what passes, what is too much, and that pieces make no difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.frames import goaway
from sidecar.inspect.frame_guard import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Breach,
    FrameGuard,
)
from sidecar.inspect.rates import Rate
from sidecar.inspect.settings import Limits
from tests.sidecar.inspect.http2_ends import frame

LIMITS = Limits()
MANY = 1 << 20


def flood(watched: FrameGuard, make: Callable[[int], bytes], count: int) -> None:
    for number in range(count):
        watched.feed(make(number), 0.0, MANY)


def guard(**limits) -> FrameGuard:
    made = FrameGuard(Limits(**limits), from_client=True)
    made.feed(PREFACE, 0.0, MANY)
    return made


def test_what_an_honest_client_sends_passes_as_it_is():
    sent = b"".join(
        (
            frame(SETTINGS),
            frame(HEADERS, 4, 1, b"head"),
            frame(DATA, 1, 1, b"body"),
            frame(PING, 0, 0, b"12345678"),
            frame(WINDOW_UPDATE, 0, 0, bytes((0, 0, 1, 0))),
            frame(HEADERS, 1, 3, b"he"),
            frame(CONTINUATION, 4, 3, b"ad"),
            frame(RST_STREAM, 0, 3, bytes(4)),
        )
    )
    assert guard().feed(sent, 0.0, MANY) == (len(sent), sent)


@given(st.lists(st.integers(1, 40), max_size=40))
def test_pieces_make_no_difference(sizes):
    sent = PREFACE + b"".join(
        (
            frame(SETTINGS, 0, 0, bytes(12)),
            frame(HEADERS, 0, 1, b"h" * 30),
            frame(CONTINUATION, 4, 1, b"i" * 10),
            goaway(0, 0, b"bye"),
            frame(DATA, 1, 1, b"b" * 50),
        )
    )
    whole = FrameGuard(LIMITS, from_client=True)
    _, expected = whole.feed(sent, 0.0, MANY)
    pieces = FrameGuard(LIMITS, from_client=True)
    out, at = b"", 0
    for size in [*sizes, len(sent)]:
        piece = sent[at : at + size]
        taken, passed = pieces.feed(piece, 0.0, MANY)
        assert taken == len(piece)
        at += size
        out += passed
    assert out == expected
    assert pieces.gone == whole.gone


def test_so_many_frames_and_no_more_are_handed_on():
    sent = frame(WINDOW_UPDATE, 0, 0, bytes(4)) * 10
    watched = guard()
    taken, passed = watched.feed(sent, 0.0, 3)
    assert passed == sent[:39] == sent[:taken]


def test_goaway_is_kept_back():
    watched = guard()
    taken, passed = watched.feed(goaway(7, 11) + frame(DATA, 1, 1, b"x"), 0.0, MANY)
    assert taken == 17 + 10
    assert passed == frame(DATA, 1, 1, b"x")
    assert (watched.gone.last_stream, watched.gone.code) == (7, 11)


ATTACKS = {
    "rapid-reset": lambda n: frame(HEADERS, 5, 2 * n + 1, b"h") + frame(RST_STREAM, 0, 2 * n + 1, bytes(4)),
    "opens": lambda n: frame(HEADERS, 5, 2 * n + 1, b"h"),
    "settings": lambda n: frame(SETTINGS),
    "pings": lambda n: frame(PING, 0, 0, bytes(8)),
    "window-updates": lambda n: frame(WINDOW_UPDATE, 0, 0, bytes((0, 0, 0, 1))),
    "empty-data": lambda n: frame(DATA, 0, 1),
    "other-frames": lambda n: frame(PRIORITY, 0, 1, bytes(5)),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_too_many_of_a_kind(kind):
    watched = guard(opens=1_000_000 if kind == "rapid-reset" else LIMITS.opens)
    with pytest.raises(Breach) as breach:
        flood(watched, ATTACKS[kind], 50_000)
    assert breach.value.kind == kind
    assert breach.value.code == 11


@pytest.mark.parametrize(("kind", "limit"), [("pings", LIMITS.pings), ("rapid-reset", LIMITS.resets)])
def test_what_is_allowed_per_second_may_go_on_for_ever(kind, limit):
    watched = guard(opens=1_000_000)
    for number in range(limit * 20):
        watched.answered = number  # before they are reset
        watched.feed(ATTACKS[kind](number), number / limit, MANY)


@pytest.mark.parametrize("pace", [1, 1000])
def test_more_resets_than_answers_are_an_attack_at_whatever_pace(pace):
    """Many connections at once are each served slowly, and each of them would stay below any rate."""
    watched = guard(early_resets=50)
    watched.answered = 1000  # long ago: no credit for what comes
    watched.feed(ATTACKS["rapid-reset"](0), 0.0, MANY)
    for number in range(1, 49):
        watched.feed(ATTACKS["rapid-reset"](number), pace * number, MANY)
    watched.answered += 20
    for number in range(21):
        watched.feed(ATTACKS["rapid-reset"](50 + number), pace * (50 + number), MANY)
    with pytest.raises(Breach) as breach:
        watched.feed(ATTACKS["rapid-reset"](80), pace * 80, MANY)
    assert breach.value.kind == "rapid-reset"


def test_what_we_are_made_to_reset_is_not_answered_either():
    watched = guard(early_resets=50)
    watched.we_reset(0.0, 50)
    watched.answered = 10
    watched.we_reset(1000.0, 10)
    with pytest.raises(Breach, match="made-you-reset"):
        watched.we_reset(2000.0, 1)


def test_padding_is_no_data():
    watched = guard()
    with pytest.raises(Breach, match="empty-data"):
        flood(watched, lambda _: frame(DATA, 8, 1, b"\0"), 100)


def test_a_head_of_many_continuations():
    watched = guard()
    watched.feed(frame(HEADERS, 0, 1, b"h"), 0.0, MANY)
    with pytest.raises(Breach, match="continuations"):
        flood(watched, lambda _: frame(CONTINUATION, 0, 1), 1000)


def test_a_head_of_many_bytes():
    watched = guard()
    watched.feed(frame(HEADERS, 0, 1, b"h" * 16_384), 0.0, MANY)
    with pytest.raises(Breach, match="head-bytes"):
        flood(watched, lambda _: frame(CONTINUATION, 0, 1, b"h" * 16_384), 10)


def test_when_a_head_began_is_known_until_it_is_complete():
    watched = guard()
    assert watched.half_since == 0.0, "the first frame belongs to the preface"
    watched.feed(frame(SETTINGS), 1.0, MANY)
    assert watched.half_since is None
    watched.feed(frame(HEADERS, 0, 1, b"h"), 5.0, MANY)
    watched.feed(frame(CONTINUATION, 0, 1, b"h"), 9.0, MANY)
    assert watched.half_since == 5.0
    watched.feed(frame(CONTINUATION, 4, 1, b"h"), 9.5, MANY)
    assert watched.half_since is None


@given(st.integers(1, 200))
def test_a_head_is_half_sent_until_its_last_byte_and_a_body_never(cut):
    watched = guard()
    watched.feed(frame(SETTINGS), 1.0, MANY)
    head, body = frame(HEADERS, 4, 1, b"h" * 50), frame(DATA, 0, 1, b"b" * 50)
    data = head + body
    for at in range(0, len(data), cut):
        watched.feed(data[at : at + cut], 5.0 + at, MANY)
        there = min(at + cut, len(data))
        half = 0 < there < len(head) or len(head) < there < len(head) + 9
        assert (watched.half_since is not None) == half
        assert not half or watched.half_since >= 5.0


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (frame(HEADERS, 0, 1, b"h") + frame(DATA, 0, 1, b"x"), "interleaved-head"),
        (frame(HEADERS, 0, 1, b"h") + frame(CONTINUATION, 4, 3, b"h"), "interleaved-head"),
        (frame(CONTINUATION, 4, 1, b"h"), "continuation"),
        (frame(HEADERS, 4, 0, b"h"), "head"),
        (frame(PUSH_PROMISE, 4, 1, bytes(4)), "push"),
        (frame(PING, 0, 0, bytes(7)), "frame-size"),
        (frame(GOAWAY, 0, 0, bytes(7)), "frame-size"),
        (bytes((255, 255, 255, DATA, 0)) + (1).to_bytes(4), "frame-size"),
        (frame(SETTINGS, 0, 0, bytes(6 * 100)), "settings"),
    ],
)
def test_what_no_honest_client_sends(data, kind):
    with pytest.raises(Breach) as breach:
        guard().feed(data, 0.0, MANY)
    assert breach.value.kind == kind


def test_another_preface():
    with pytest.raises(Breach, match="preface"):
        FrameGuard(LIMITS, from_client=True).feed(b"PRI * HTTP/2.0\r\n\r\nXX", 0.0, MANY)


def test_resets_that_we_are_made_to_send_count_as_the_clients_own():
    watched = guard()
    watched.we_reset(0.0, 2 * LIMITS.resets)
    with pytest.raises(Breach, match="made-you-reset"):
        watched.we_reset(0.0, 1)


def test_an_applications_frames_are_measured_and_not_counted():
    watched = FrameGuard(LIMITS, from_client=False)
    for _ in range(20_000):
        watched.feed(frame(PING, 0, 0, bytes(8)) + frame(RST_STREAM, 0, 1, bytes(4)), 0.0, MANY)
    with pytest.raises(Breach, match="head-bytes"):
        watched.feed(frame(HEADERS, 0, 1, b"h" * 65_536) + frame(CONTINUATION, 0, 1, b"h"), 0.0, MANY)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_are_a_fault(data, size):
    watched = guard()
    try:
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            taken, passed = watched.feed(piece, 0.0, MANY)
            assert taken == len(piece)
            assert len(passed) <= len(piece) + 9
    except Breach:
        pass


def test_a_rate_gives_back_what_time_gives():
    rate = Rate(10)
    assert all(rate.take(100.0) for _ in range(20))
    assert not rate.take(100.0)
    assert all(rate.take(100.5) for _ in range(3))
    assert rate.total == 24
