"""Mappings are read strictly: what is not understood is refused, with field, problem and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest

from graph.fields import (
    Address,
    Check,
    Fields,
    Unfit,
    choice,
    destination_address,
    flag,
    host_name,
    integer,
    ip_address,
    ip_network,
    items,
    listen_address,
    matching,
    namespace_name,
    optional,
    parsed,
    refuse_taken,
    remote_address,
    seconds,
    shown,
    text,
    trust_domain_name,
    unfit,
)
from graph.flow import EdgeKey


class Refused(Exception):
    """What these tests' reader raises."""


def fields(document: object) -> Fields:
    return Fields(document, Refused, noun="setting")


def refused(call: Callable[[], object]) -> tuple[str, str, str]:
    with pytest.raises(Refused) as caught:
        call()
    name, problem, remedy = caught.value.args
    return name, problem, remedy


def inner(value: object) -> tuple[int, ...]:
    mapping = Fields(value, unfit)
    numbers = mapping.take("numbers", items(integer(0, 9)))
    mapping.finish()
    return numbers


class TestReader:
    def test_a_field_is_taken_once_and_the_rest_is_refused(self) -> None:
        reader = fields({"a": "x", "b": "y"})
        assert reader.take("a", text()) == "x"
        assert reader.take("c", text(), "default") == "default"
        assert refused(reader.finish) == ("b", "unknown setting", "remove it; known are: a, c")

    def test_nothing_left_over_is_well(self) -> None:
        reader = fields({"a": None})
        assert reader.take("a", optional(text())) is None
        reader.finish()

    @pytest.mark.parametrize("document", [None, [], "a", 7])
    def test_only_mappings_are_read(self, document: object) -> None:
        name, problem, remedy = refused(lambda: fields(document))
        assert (name, remedy) == ("", "write each setting by its name, as `name: value`")
        assert problem == f"{shown(document)} is not a mapping"

    def test_a_misspelt_name_is_guessed(self) -> None:
        reader = fields({"inventroy": "x"})
        reader.take("inventory", text(), "")
        assert refused(reader.finish) == ("inventroy", "unknown setting", "did you mean 'inventory'?")

    def test_a_missing_name_is_guessed_among_those_left_over(self) -> None:
        reader = fields({"inventroy": "x", "namespace": "y"})
        assert refused(lambda: reader.take("inventory", text())) == (
            "inventory", "missing", "add the setting 'inventory' (is 'inventroy' meant to be it?)",
        )  # fmt: skip
        assert refused(lambda: reader.take("name", text())) == ("name", "missing", "add the setting 'name'")

    def test_a_name_that_is_no_text_or_would_move_the_cursor_is_refused_as_it_can_be_shown(self) -> None:
        assert refused(fields({7: "x"}).finish)[:2] == ("7", "unknown setting")
        assert refused(fields({"a\x1b[2J\n": "x"}).finish)[0] == "a\ufffd[2J\ufffd"
        assert len(refused(fields({"a" * 10_000: "x"}).finish)[0]) == 80

    @pytest.mark.parametrize(
        ("written", "path", "remedy"),
        [
            ({"numbers": [1, 10]}, "outer[1].numbers[1]", "write a whole number from 0 to 9"),
            ({"numbers": 1}, "outer[1].numbers", "write a list, even of one entry"),
            ({"number": []}, "outer[1].numbers", "add the field 'numbers' (is 'number' meant to be it?)"),
            ({"numbers": [], "x": 1}, "outer[1].x", "remove it; known are: numbers"),
            ([], "outer[1]", "write each field by its name, as `name: value`"),
        ],
    )
    def test_a_fault_deep_inside_is_named_by_its_path(self, written: object, path: str, remedy: str) -> None:
        reader = fields({"outer": [{"numbers": [1]}, written]})
        assert refused(lambda: reader.take("outer", items(inner)))[::2] == (path, remedy)

    def test_a_value_can_be_checked_after_others(self) -> None:
        reader = fields({"a": [7]})
        taken = reader.take("a", lambda value: value)
        assert refused(lambda: reader.checked("a", taken, items(text())))[0] == "a[0]"


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


FIT: list[tuple[Check[Any], object, object]] = [
    (text(), "a b", "a b"),
    (text(may_be_empty=True), "", ""),
    (matching(re.compile("a+"), "a's"), "aa", "aa"),
    (matching(re.compile("a+"), "a's", may_be_empty=True), "", ""),
    (flag, False, False),
    (integer(0, 3), 3, 3),
    (seconds(0, 3), 3, 3.0),
    (choice(*Colour), "red", Colour.RED),
    (optional(flag), None, None),
    (items(flag, at_least=1), [True], (True,)),
    (parsed(EdgeKey.parse), "a/b->c/d:1/TCP", EdgeKey.parse("a/b->c/d:1/TCP")),
    (namespace_name, "shop", "shop"),
    (trust_domain_name, "hedgerow.local", "hedgerow.local"),
    (ip_address, "FD00:0::7", "fd00::7"),
    (ip_network, "10.96.0.0/16", "10.96.0.0/16"),
    (host_name, "Mesh.Example", "mesh.example"),
    (host_name, "[::1]", "::1"),
    (listen_address, "[0::1]:0", Address("::1", 0)),
    (destination_address, "10.0.0.1:65535", Address("10.0.0.1", 65535)),
    (remote_address, "Controller.example:1", Address("controller.example", 1)),
    (remote_address, "[::1]:1", Address("::1", 1)),
]


@pytest.mark.parametrize(("check", "written", "value"), FIT)
def test_what_fits_is_taken(check: Check[Any], written: object, value: object) -> None:
    found = check(written)
    assert found == value
    assert type(found) is type(value)


UNFIT: list[tuple[Check[Any], object, str]] = [
    *((text(), value, "write a string") for value in (7, None, ["a"], True)),
    (text(), " ", "write something"),
    *((text(), value, "plain text") for value in ("a\0", "a\nb", "a\x1b[1m", "a\u202eb")),
    (text(3), "abcd", "at most 3"),
    (matching(re.compile("a"), "an a"), "aa", "use an a"),
    (matching(re.compile("a"), "an a"), "", "write something"),
    *((flag, value, "true or false") for value in (0, 1, "true", None)),
    *((integer(1, 3), value, "from 1 to 3") for value in (0, 4, "1", 1.0, True, None, [1])),
    *((seconds(0, 10), value, "from 0 to 10") for value in (float("inf"), float("nan"), -1, 11, "1", None, False)),
    *((choice(*Colour), value, "red, blue") for value in ("Red", "", None, 1, ["red"])),
    (optional(flag), 1, "true or false"),
    *((items(flag), value, "a list") for value in (True, None, {}, "ab")),
    (items(flag, at_least=1), [], "1 to"),
    (items(flag, at_most=1), [True, True], "0 to 1"),
    (parsed(EdgeKey.parse), "a", "shop/front"),
    (parsed(EdgeKey.parse), 7, "write a string"),
    *((namespace_name, value, "lower-case") for value in ("", "A", "a/b", "a b")),
    *((trust_domain_name, value, "lower-case") for value in ("A.b", "a:b", "a/b")),
    (trust_domain_name, "a" * 256, "at most 255"),
    *((ip_address, value, "10.0.0.7") for value in ("10.0.0.7/24", "localhost", "10.0.0.07")),
    *((ip_network, value, "10.96.0.0/16") for value in ("10.0.0.1/8", "10.0.0.0/33", "x")),
    *((host_name, value, "a name or an IP address") for value in ("a b", "a/b", "a:80", "http://a", "-a", "[a")),
    *((remote_address, value, "127.0.0.1:8080") for value in ("x", "x:", "a:b", "a:99999", "a:٣", "a:-1", "a:+1")),
    *((remote_address, value, "a name or an IP address") for value in (":80", "a b:80", "[[::1]]:80")),
    *((remote_address, value, "in brackets") for value in ("::1:80", ":80:80")),
    (remote_address, 80, "write a string"),
    (remote_address, "a:0", "listened on"),
    (listen_address, "localhost:80", "127.0.0.1:8080"),
    (destination_address, "localhost:80", "127.0.0.1:8080"),
    (destination_address, "10.0.0.1:0", "listened on"),
]


@pytest.mark.parametrize(("check", "written", "remedy"), UNFIT)
def test_what_does_not_fit_is_refused_with_a_remedy(check: Check[Any], written: object, remedy: str) -> None:
    with pytest.raises(Unfit) as caught:
        check(written)
    assert remedy in caught.value.remedy
    assert caught.value.problem
    assert caught.value.inner == ""


def test_an_address_is_written_as_it_is_read() -> None:
    for written in ("10.0.0.1:80", "[::1]:80"):
        assert str(listen_address(written)) == written


def test_two_fields_do_not_listen_on_one_port() -> None:
    one, any_port = Address("::1", 80), Address("::1", 0)
    refuse_taken([("a", one), ("b", Address("::2", 80)), ("c", any_port), ("d", any_port)], Refused)
    taken = refused(lambda: refuse_taken([("a", one), ("b", one)], Refused))
    assert taken == ("b", "[::1]:80 is taken by a", "give each its own port")


def test_what_a_message_shows_is_bounded_and_can_not_move_the_cursor() -> None:
    assert shown("a\x1b[2J") == r"'a\x1b[2J'"
    assert (shown("8"), shown(8), shown(10**100), shown(True)) == ("'8'", "8", "1" + "0" * 59, "True")
    assert len(shown("x" * 10_000)) < 80
    assert (shown(None), shown({"a": 1}), shown([1])) == ("nothing", "a mapping", "a list")
