"""Packed texts, short and long, against the decoder of the hpack package."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as theirs
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.http import huffman
from sidecar.http.errors import Malformed

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
LONG = st.binary(min_size=1).map(lambda some: some * (2048 // len(some) + 1))


def read(data: bytes) -> bytes | None:
    try:
        return huffman.decode(data)
    except Malformed:
        return None


def read_by_them(data: bytes) -> bytes | None:
    try:
        return theirs(data)
    except hpack.HPACKDecodingError:
        return None


@given(st.binary(max_size=400) | LONG)
@example(bytes(range(256)) * 8)
@example(b"0" * 25_000)
def test_what_was_packed_is_read(text: bytes) -> None:
    assert huffman.decode(ENCODER.encode(text)) == text


@given(st.binary(max_size=300), LONG, st.integers(0, 2000))
def test_any_bytes_are_read_or_refused_as_they_do(data: bytes, text: bytes, at: int) -> None:
    packed = ENCODER.encode(text)
    for whole in (data, packed[:at] + data + packed[at:], packed[:at] or b"\0"):
        assert read(whole) == read_by_them(whole)


PRINTED = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=30, max_size=60)


@given(PRINTED, st.integers(0, 255), st.integers(0, 2))
@example("a" * 40, 0, 0)  # no bit left over
@example("a" * 40, 0, 1)  # eight of them
@example("a" * 37, 0, 0)  # seven
@example("a" * 37, 1, 0)  # seven that are not all ones
def test_what_is_left_of_the_last_octet_is_seven_ones_at_most(text: str, broken: int, more: int) -> None:
    packed = ENCODER.encode(text.encode())
    data = packed[:-1] + bytes([packed[-1] ^ broken]) + b"\xff" * more
    assert read(data) == read_by_them(data)


def test_zlib_reads_what_is_long_and_printed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = bytes(each for each in range(32, 127) if each != ord("\\"))

    def unexpected() -> None:
        raise AssertionError("the table was asked")

    monkeypatch.setattr(huffman, "_machine", unexpected)
    assert huffman.decode(ENCODER.encode(printed)) == printed
    with pytest.raises(AssertionError, match="asked"):
        huffman.decode(ENCODER.encode(printed + b"\\"))


@pytest.mark.parametrize("size", [5, 100, 1000])
@pytest.mark.parametrize(
    "end", [b"", b"\xff", b"\xff\xff\xff\xff", b"\x00"], ids=["as it was", "no code", "the end", "half a code"]
)
def test_the_length_changes_nothing(size: int, end: bytes) -> None:
    text = ENCODER.encode(b"a" * 8) * (size // 5 + 1)
    data = text[: size // 5 * 5] + end
    assert read(data) == read_by_them(data)


def test_what_is_kept_is_bounded() -> None:
    machine = huffman._Huffman()
    for value in range(256):
        machine.decode(ENCODER.encode(bytes([value, 255 - value]) * 2000))
    steps = [step for row in machine._rows.values() for step in row[: huffman._STATE] if step is not None]
    assert 0 < len(machine._rows) <= 256
    assert max(len(text) for _, text in steps) <= 2
