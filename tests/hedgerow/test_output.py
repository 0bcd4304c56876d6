"""How tables fit into a terminal, and what of other people's words reaches it."""

from __future__ import annotations

import pytest

from hedgerow.cli import output
from hedgerow.cli.output import Column, ago, columns_of, connection, duration, fit, print_table, printable, size, wrap

COLUMNS = (Column("name", least=8), Column("state"), Column("why", least=10, spare=1), Column("bytes", spare=2))
WIDTHS = (20, 6, 30, 10)


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (200, {0: 20, 1: 6, 2: 30, 3: 10}),
        (72, {0: 20, 1: 6, 2: 30, 3: 10}),
        (71, {0: 20, 1: 6, 2: 29, 3: 10}),
        (50, {0: 13, 1: 6, 2: 15, 3: 10}),
        (40, {0: 8, 1: 6, 2: 10, 3: 10}),
        (39, {0: 13, 1: 6, 2: 16}),
        (28, {0: 8, 1: 6, 2: 10}),
        (27, {0: 19, 1: 6}),
        (16, {0: 8, 1: 6}),
        (5, {0: 8, 1: 6}),
    ],
)
def test_columns_give_way_before_they_are_left_out_and_the_least_needed_go_first(
    room: int, shown: dict[int, int]
) -> None:
    found = fit(COLUMNS, WIDTHS, room)
    assert found == shown
    assert sum(found.values()) + 2 * (len(found) - 1) <= max(room, 16)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("short", 10, ["short"]),
        ("two words", 5, ["two", "words"]),
        ("shop/front → shop/cart:8080", 15, ["shop/front →", "shop/cart:8080"]),
        ("hedgerow-system/controller", 16, ["hedgerow-system/", "controller"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("日本語日本語", 6, ["日本語", "日本語"]),
        ("", 4, [""]),
    ],
)
def test_wrapping(text: str, width: int, lines: list[str]) -> None:
    found = wrap(text, width)
    assert found == lines
    assert all(columns_of(line) <= width for line in found)


def test_nobody_else_writes_on_the_terminal() -> None:
    hostile = "a\x1b[31mb\rc\x07d\u202ee\tf\ng"
    assert printable(hostile) == "a\ufffd[31mb c\ufffdd\ufffde f g"
    assert printable("né → 日本") == "né → 日本"


def test_a_pipe_gets_everything_on_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    print_table(COLUMNS, [("a", None, long, 1), ("bb", "ok", "[bold]", 22)], "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "STATE", "WHY", "BYTES"],
        ["a", "-", long, "1"],
        ["bb", "ok", "[bold]", "22"],
    ]
    assert all(line == line.rstrip() for line in lines)


def test_a_narrow_terminal_is_told_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setattr(output, "terminal_width", lambda: 30)
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(COLUMNS, [("shop/recommendation", "active", "because it is so", "1 KiB")], "nothing")
    said = capsys.readouterr().out
    assert "BYTES" not in said
    assert "no room for" in said
    assert all(columns_of(line) <= 30 for line in said.splitlines()), said
    assert "\x1b" not in said


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [], "There is nothing.")
    assert capsys.readouterr().out == "There is nothing.\n"


def test_words_for_numbers() -> None:
    assert [duration(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 86399, 86400, 1e7)] == [
        "0s", "59s", "1m", "59m", "1h", "23h", "1d", "115d",
    ]  # fmt: skip
    assert (ago(100, 160), ago(160, 100), ago(None), ago(0)) == ("1m ago", "in 1m", "-", "-")
    assert [size(count) for count in (0, 1023, 1024, 1536, 5 * 2**30, 5 * 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "5120.0 GiB",
    ]  # fmt: skip


def test_ends_are_written_as_people_know_them() -> None:
    assert connection("shop/front", "shop/cart", 80, "TCP") == "shop/front → shop/cart:80"
    assert connection("-/192.0.2.7", "shop/dns", 53, "UDP") == "192.0.2.7 → shop/dns:53/UDP"
    assert connection("shop/front", "-/2001:db8::7", 443, "TCP") == "shop/front → [2001:db8::7]:443"
    assert connection("shop/front", "-/0.0.0.0", 443, "TCP") == "shop/front → other addresses:443"
