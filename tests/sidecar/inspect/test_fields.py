"""Octets of fields: what h2 refuses is refused in its words, and nothing else is."""

from __future__ import annotations

import h2.exceptions
import h2.utilities
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.inspect import fields, h2_state
from tests.sidecar.inspect.connection import Kind, rule
from tests.sidecar.inspect.http2_ends import Pair, frame

OURS = h2.utilities._reject_illegal_characters
(THEIRS,) = (cell.cell_contents for cell in OURS.__closure__)

#: Mostly what is allowed, so that what is not stands at any place.
TEXTS = st.one_of(st.binary(max_size=8), st.text("abz09-:;@A[~! \t\0\r\n\x7f", max_size=8).map(str.encode))


def outcome(check, head):
    passed = []
    try:
        passed.extend(check(head, None))
    except h2.exceptions.ProtocolError as refused:
        return passed, str(refused)
    return passed, ""


def test_the_library_uses_ours_and_ours_the_librarys():
    assert h2_state.fields is fields
    assert OURS.__module__ == "sidecar.inspect.fields"
    assert THEIRS.__module__ == "h2.utilities"
    fields.install()
    assert h2.utilities._reject_illegal_characters is OURS, "it is there once"


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
@example([(b":path", b"/"), (b"a:b", b"c")])
@example([(b"", b"")])
@example([(b"::", b"x")])
@example([(b"a", b" ")])
@example([(b"a", b"x\t")])
@example([(b"a", b"x y\tz\xff\x01")])
def test_the_same_is_refused_in_the_same_words(head):
    assert outcome(OURS, head) == outcome(THEIRS, head)


@pytest.mark.parametrize("octet", range(256))
def test_every_octet_is_judged_as_before(octet):
    for text in (b"%c", b"a%c", b"a%cb", b"%cb"):
        for head in ([(text % octet, b"v")], [(b"n", text % octet)]):
            assert outcome(OURS, head) == outcome(THEIRS, head)


@pytest.mark.parametrize("field", [b"\x01X\x01v", b"\x01x\x02v\n", b"\x01x\x02\0v", b"\x01x\x02 v", b"\x03a:b\x01v"])
async def test_a_field_that_is_not_allowed_ends_the_connection(world, field):
    c = world(rule("GET /cart/{id}")).connect(Kind.HTTP2)
    pair = Pair(c)
    c.client.give(frame(1, 5, 1, b"\x82\x86\x84\x41\x01a\x40" + field))
    assert c.dials == 0
    assert b"HTTP/2 protocol error: " in pair.client.leg.read()
