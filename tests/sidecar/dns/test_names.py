"""Names bound to addresses: for how long, how many, and which never."""

from __future__ import annotations

import json

import pytest

from graph.errors import DecodeError
from sidecar.dns.names import MAX_PER_ANSWER, MAX_TTL, NameTable

HOST = "api.example.com"
KEEP = 100.0


def table(**changes):
    return NameTable(KEEP, **changes)


def test_a_name_is_bound_for_its_time_and_a_while_longer():
    names = table()
    names.bind(HOST, [("192.0.2.1", 30), ("2001:db8::1", 60)], 1000.0)
    assert names.bound("192.0.2.1", 1129.9) == (HOST,)
    assert names.bound("192.0.2.1", 1130.0) == ()
    assert names.bound("2001:db8::1", 1159.0) == (HOST,)
    assert names.bound("192.0.2.2", 1000.0) == ()


def test_another_answer_extends_and_never_shortens():
    names = table()
    names.bind(HOST, [("192.0.2.1", 300)], 1000.0)
    names.bind(HOST, [("192.0.2.1", 1)], 1001.0)
    assert names.bound("192.0.2.1", 1399.0) == (HOST,)
    names.bind(HOST, [("192.0.2.1", 300)], 1399.0)
    assert names.bound("192.0.2.1", 1798.0) == (HOST,)


def test_the_name_that_was_answered_last_is_the_first():
    names = table()
    for host in ("a.example", "b.example", "a.example"):
        names.bind(host, [("192.0.2.1", 30)], 1000.0)
    assert names.bound("192.0.2.1", 1000.0) == ("a.example", "b.example")


def test_a_connection_holds_its_name_and_a_while_longer():
    names = table()
    names.bind(HOST, [("192.0.2.1", 0)], 1000.0)
    names.began("192.0.2.1", HOST)
    names.began("192.0.2.1", HOST)
    names.ended("192.0.2.1", HOST, 5000.0)
    assert names.bound("192.0.2.1", 9000.0) == (HOST,)
    names.ended("192.0.2.1", HOST, 9000.0)
    assert names.bound("192.0.2.1", 9099.0) == (HOST,)
    assert names.bound("192.0.2.1", 9100.0) == ()
    assert names.addresses == 0


def test_a_connection_may_end_after_its_name_is_gone():
    names = table(max_addresses=1)
    names.bind(HOST, [("192.0.2.1", 0)], 1000.0)
    names.began("192.0.2.1", HOST)
    names.bind(HOST, [("192.0.2.2", 0)], 1000.0)
    names.ended("192.0.2.1", HOST, 1000.0)
    names.began("192.0.2.9", HOST)
    names.ended("192.0.2.9", HOST, 1000.0)
    names.bind(HOST, [("192.0.2.1", 0)], 1000.0)
    names.ended("192.0.2.1", HOST, 2000.0)  # of the binding that was pushed out
    assert names.bound("192.0.2.1", 1200.0) == ()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "224.0.0.1"),
        *(
            "ff02::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "240.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "x",
        ),
    ],
)
def test_no_name_leads_to_what_is_never_outside(address):
    names = table()
    names.bind(HOST, [(address, 60)], 0.0)
    assert names.addresses == 0


def test_a_mapped_address_is_the_ipv4_address_that_a_connection_shows():
    names = table()
    names.bind(HOST, [("::ffff:192.0.2.1", 60)], 0.0)
    assert names.bound("192.0.2.1", 0.0) == (HOST,)


def test_what_policy_can_not_name_is_not_bound():
    names = table()
    for host in ("", "localhost", "API.example.com", "a b.example"):
        names.bind(host, [("192.0.2.1", 60)], 0.0)
    assert names.addresses == 0


def test_everything_is_bounded_and_the_least_used_goes_first():
    names = table(max_addresses=3, max_names=2)
    names.bind(HOST, [(f"192.0.2.{n}", 60) for n in range(1, 4)], 0.0)
    assert names.bound("192.0.2.1", 0.0) == (HOST,)  # a use
    names.bind(HOST, [("192.0.2.9", 60)], 0.0)
    assert names.addresses == 3
    assert names.bound("192.0.2.2", 0.0) == ()
    assert names.bound("192.0.2.1", 0.0) == (HOST,)
    for host in ("a.example", "b.example", "c.example"):
        names.bind(host, [("192.0.2.1", 60)], 0.0)
    assert names.bound("192.0.2.1", 0.0) == ("c.example", "b.example")


def test_an_answer_of_thousands_binds_a_few():
    names = table()
    names.bind(HOST, [(f"192.0.{n >> 8}.{n & 255}", 60) for n in range(1000)], 0.0)
    assert names.addresses <= MAX_PER_ANSWER


def test_no_time_is_longer_than_a_day():
    names = table()
    names.bind(HOST, [("192.0.2.1", 2**31 - 1)], 0.0)
    assert names.bound("192.0.2.1", MAX_TTL + KEEP) == ()


def test_bindings_survive_a_restart():
    names = table()
    names.bind(HOST, [("192.0.2.1", 30), ("192.0.2.2", 0)], 1000.0)
    names.bind("b.example", [("192.0.2.1", 30)], 1000.0)
    names.bind("c.example", [("192.0.2.3", 0)], 1000.0)
    names.began("192.0.2.2", HOST)
    again = table()
    again.restore(names.dump(1110.0), 1111.0)
    assert again.bound("192.0.2.1", 1111.0) == ("b.example", HOST)
    assert again.bound("192.0.2.1", 1130.0) == ()
    assert again.bound("192.0.2.2", 1209.0) == (HOST,), "in use until the restart, and a while longer"
    assert again.bound("192.0.2.3", 1111.0) == ()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}x", b"[1]", b'[["a"]]', b'[["192.0.2.1","a.example","x"]]', b'{"a":1}', b"\xff", b"[" * 100_000],
)
def test_damaged_bindings_are_refused(data):
    names = table()
    with pytest.raises(DecodeError):
        names.restore(data, 0.0)
    assert names.addresses == 0


@pytest.mark.parametrize(
    "row",
    [
        ["127.0.0.1", HOST, 50.0],
        ["192.0.2.1", "localhost", 50.0],
        ["192.0.2.1", HOST, 0.0],
        ["192.0.2.1", HOST, 1e12],
        ["192.0.2.1", HOST, float("nan")],
        ["192.0.2.1", HOST, float("inf")],
        ["x", HOST, 50.0],
    ],
)
def test_stored_bindings_that_could_not_have_been_made_are_left_out(row):
    names = table()
    names.restore(json.dumps([row]).encode(), 1.0)
    assert names.addresses == 0
