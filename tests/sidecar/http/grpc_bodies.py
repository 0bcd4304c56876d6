"""Bodies of gRPC, written by hand, and counted by the simplest code that can do it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st


def message(payload, *, compressed=False):
    return bytes([compressed]) + len(payload).to_bytes(4) + payload


def begun(body):
    """How many messages begin in a body that is all there."""
    count = 0
    while body:
        count += 1
        body = body[5 + int.from_bytes(body[1:5]) :] if len(body) > 5 else b""
    return count


def cut(body, places):
    """``body`` in pieces, some of which may be empty."""
    places = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


#: Messages as they are, with lengths that lie among them, and what is no message at all.
BODIES = st.lists(
    st.builds(message, st.binary(max_size=300), compressed=st.booleans())
    | st.builds(lambda length, said: b"\0" + said.to_bytes(4) + bytes(length), st.integers(0, 40), st.integers(0, 60))
    | st.just(bytes(5))
    | st.just(b"\1\xff\xff\xff\xff")
    | st.binary(max_size=12),
    max_size=12,
).map(b"".join)
PLACES = st.lists(st.integers(0, 700), max_size=30)
