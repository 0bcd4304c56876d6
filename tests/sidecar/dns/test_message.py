"""DNS messages: what is read, what is refused, and that no bytes make the reader do more than its bounds."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dns.message import (
    MAX_CHAIN,
    MAX_QUERY,
    MAX_RECORDS,
    ErrorInfo,
    Malformed,
    Query,
    Rcode,
    Unanswerable,
    host_of,
    read_answer,
    read_query,
    refusal,
    with_id,
)
from tests.sidecar.dns import packets as dns

HOST = "api.example.com"
START = 12  # of the question's name
POINTER = b"\xc0\x0c"


def test_a_query():
    query = read_query(dns.query("API.Example.com", dns.AAAA, additional=[dns.opt()]))
    assert (query.id, query.name, query.type, query.klass) == (0x1234, (b"api", b"example", b"com"), dns.AAAA, 1)
    assert query.question == dns.question("API.Example.com", dns.AAAA), "as it was written"
    assert query.extended
    assert not read_query(dns.query(HOST)).extended


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "header"), (b"\0" * 11, "header"), (dns.response(HOST), "response")],
)
def test_what_is_not_even_refused(data, says):
    with pytest.raises(Malformed, match=says):
        read_query(data)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (dns.message(1, 0x2800, [dns.question(HOST)]), Rcode.NOTIMP),  # UPDATE
        (dns.message(1, 0, []), Rcode.FORMERR),
        (dns.message(1, 0, [dns.question(HOST)] * 2), Rcode.FORMERR),
        (dns.query(HOST, answers=[dns.address(HOST, "192.0.2.1")]), Rcode.FORMERR),
        (dns.query(HOST, authorities=[dns.address(HOST, "192.0.2.1")]), Rcode.FORMERR),
        (dns.query(HOST, additional=[dns.opt()] * 2), Rcode.FORMERR),
        (dns.query(HOST, additional=[dns.opt()] * 3), Rcode.FORMERR),
        (dns.query(HOST) + b"x", Rcode.FORMERR),
        (dns.query(HOST)[:-1], Rcode.FORMERR),
        (dns.message(1, 0, [b"\xc0\x0c\0\1\0\1"]), Rcode.FORMERR),
        (dns.message(1, 0, [b"\x40" + b"a" * 64 + b"\0\0\1\0\1"]), Rcode.FORMERR),
        (dns.query(HOST, additional=[dns.opt(b"x" * MAX_QUERY)]), Rcode.FORMERR),
        (dns.query(HOST, 252), Rcode.REFUSED),
        (dns.query(HOST, 251), Rcode.REFUSED),
    ],
)
def test_queries_that_are_refused(data, rcode):
    with pytest.raises(Unanswerable) as caught:
        read_query(data)
    assert caught.value.rcode is rcode
    reply = refusal(caught.value.query, rcode)
    assert reply[:2] == data[:2]
    assert dns.rcode(reply) == rcode
    read_answer(reply)


@pytest.mark.parametrize("extended", [True, False])
def test_a_refusal_is_a_well_formed_answer_to_the_question(extended):
    query = read_query(dns.query(HOST, additional=[dns.opt()] if extended else []))
    reply = refusal(query, Rcode.SERVFAIL, ErrorInfo.NETWORK, "no answer" * 100)
    answer = read_answer(reply)
    assert answer.answers(query, query.id)
    assert (answer.rcode, answer.addresses) == (Rcode.SERVFAIL, ())
    assert len(reply) <= 512
    assert (struct.pack("!HH", 15, 122) in reply) == extended
    assert struct.unpack_from("!H", reply, 2)[0] & 0x8180 == 0x8180


def test_the_addresses_of_the_name_that_was_asked_for():
    data = dns.response(
        HOST,
        dns.address(POINTER, "192.0.2.1", 30),
        dns.address("other.example.com", "192.0.2.66"),
        dns.address("API.EXAMPLE.COM", "2001:db8::1", 1 << 31),
        dns.record(HOST, dns.A, b"\1\2\3\4", klass=3),
        dns.record(HOST, dns.TXT, b"\x04text"),
        authorities=[dns.address(HOST, "192.0.2.67")],
        additional=[dns.address(HOST, "192.0.2.68"), dns.opt()],
    )
    answer = read_answer(data)
    assert answer.addresses == (("192.0.2.1", 30), ("2001:db8::1", 0))
    assert answer.host == HOST
    assert not answer.truncated


def test_an_alias_binds_the_name_that_was_asked_and_lives_no_longer_than_any_part():
    answers = [
        dns.address("edge.cdn.example", "192.0.2.1", 300),
        dns.alias("www.partner.example", "edge.cdn.example", 20),
        dns.alias(HOST, "www.partner.example", 60),
    ]
    answer = read_answer(dns.response(HOST, *answers))
    assert answer.host == HOST
    assert answer.addresses == (("192.0.2.1", 20),)


@pytest.mark.parametrize(
    "answers",
    [
        [
            dns.alias("a.example", "b.example"),
            dns.alias("b.example", "a.example"),
            dns.address("c.example", "192.0.2.1"),
        ],
        [dns.alias("a.example", "a.example"), dns.address("a.example", "192.0.2.1")],
        [
            dns.alias("a.example", "b.example"),
            dns.alias("a.example", "c.example"),
            dns.address("b.example", "192.0.2.1"),
        ],
        [dns.alias("b.example", "c.example"), dns.address("c.example", "192.0.2.1")],
        [
            *(dns.alias("a.example" if not n else f"x{n}.example", f"x{n + 1}.example") for n in range(MAX_CHAIN)),
            dns.address(f"x{MAX_CHAIN}.example", "192.0.2.1"),
        ],
    ],
    ids=["circle", "itself", "two aliases", "unconnected", "too long"],
)
def test_chains_that_lead_nowhere_have_no_address(answers):
    assert read_answer(dns.response("a.example", *answers)).addresses == ()


def test_the_longest_chain():
    links = [dns.alias("a.example" if not n else f"x{n}.example", f"x{n + 1}.example") for n in range(MAX_CHAIN - 1)]
    data = dns.response("a.example", *links, dns.address(f"x{MAX_CHAIN - 1}.example", "192.0.2.1"))
    assert read_answer(data).addresses == (("192.0.2.1", 60),)


def at(offset: int) -> bytes:
    return struct.pack("!H", 0xC000 | offset)


@pytest.mark.parametrize(
    "data",
    [
        dns.query(HOST),
        b"\0" * 11,
        dns.response(HOST) + b"x",
        dns.response(HOST, dns.address(HOST, "192.0.2.1"))[:-1],
        dns.response(HOST, dns.record(HOST, dns.A, b"\1\2\3")),
        dns.response(HOST, dns.record(HOST, dns.AAAA, b"\1\2\3\4")),
        dns.response(HOST, dns.record(HOST, dns.CNAME, b"\x01a\0x")),
        dns.response(HOST, dns.record(HOST, dns.CNAME, b"")),
        dns.response(HOST, dns.address(at(0xFFF), "192.0.2.1")),
        dns.response(HOST, dns.address(at(0), "192.0.2.1")),
        dns.response(HOST, dns.address(at(START + len(dns.question(HOST))), "192.0.2.1")),  # to itself
        dns.response(HOST, dns.address(b"\x01a" + at(START + len(dns.question(HOST))), "192.0.2.1")),
        dns.response(HOST, dns.address(b"\x80\0", "192.0.2.1")),
        dns.response(HOST, dns.address(b"\xc0", "192.0.2.1")),
        dns.response(HOST, dns.address(dns.name(".".join(["a" * 63] * 4)), "192.0.2.1")),
        dns.message(1, dns.RESPONSE, [dns.question(HOST)] * 2),
        dns.response(HOST, *[dns.address(b"\0", "192.0.2.1")] * (MAX_RECORDS + 1)),
        struct.pack("!6H", 1, dns.RESPONSE, 0, 500, 0, 0),
        dns.message(1, dns.RESPONSE, [dns.question(HOST)[:-2]]),
    ],
)
def test_answers_that_contradict_the_format(data):
    with pytest.raises(Malformed):
        read_answer(data)


def test_pointers_to_pointers_are_bounded():
    """Each alias's target points at the target before it: a chain of pointers as long as the message allows."""
    parts, offset = [], START
    begin = START + len(dns.question(HOST))
    for _ in range(40):
        part = dns.record(b"\0", dns.CNAME, at(offset))
        offset = begin + sum(map(len, parts)) + 1 + 10
        parts.append(part)
    with pytest.raises(Malformed, match="point"):
        read_answer(dns.response(HOST, *parts))


def test_what_a_message_has_us_read_is_bounded():
    """Records that point into one long name, each to another place: a kilobyte of them was a tenth of a second."""
    long = ".".join("abcdefghijklmnopqrstuvwxy"[index % 25] for index in range(127))
    same = [dns.address(b"\xc0\x0c", f"192.0.2.{index % 250}") for index in range(500)]
    assert len(read_answer(dns.response(long, *same)).addresses) == 500, "it is read once"
    places = [dns.address(bytes([0xC0, 12 + 2 * (index % 120)]), "192.0.2.1") for index in range(500)]
    assert read_answer(dns.response(long, *places[:30])).name
    with pytest.raises(Malformed):
        read_answer(dns.response(long, *places))
    aliases = [dns.alias(b"\xc0\x0c", b"\xc0\x0e") for _ in range(500)]
    assert read_answer(dns.response(long, *aliases)).addresses == ()


def test_which_answers_answer_a_query():
    query = read_query(dns.query(HOST))
    assert read_answer(dns.response("API.example.COM", number=7)).answers(query, 7)
    assert not read_answer(dns.response(HOST, number=8)).answers(query, 7)
    assert not read_answer(dns.response("api.example.net", number=7)).answers(query, 7)
    assert not read_answer(dns.response(HOST, kind=dns.AAAA, number=7)).answers(query, 7)
    assert not read_answer(dns.message(7, dns.RESPONSE | 0x2800, [dns.question(HOST)])).answers(query, 7)
    assert read_answer(dns.message(7, dns.RESPONSE | Rcode.FORMERR)).answers(query, 7)
    assert not read_answer(dns.message(7, dns.RESPONSE)).answers(query, 7)


@pytest.mark.parametrize(
    ("labels", "host"),
    [
        ((b"api", b"example", b"com"), "api.example.com"),
        ((b"_sip", b"example", b"com"), "_sip.example.com"),
        ((b"xn--mnchen-3ya", b"de"), "xn--mnchen-3ya.de"),
        ((b"localhost",), ""),
        ((), ""),
        ((b"a.b", b"com"), ""),
        ((b"a b", b"com"), ""),
        ((b"a\0", b"com"), ""),
        ((b"\xc3\xa4", b"com"), ""),
        ((b"a", b"com\n"), ""),
        ((b"1", b"2", b"3", b"4"), ""),
    ],
)
def test_names_that_policy_can_write(labels, host):
    assert host_of(labels) == host


def test_another_id_and_nothing_else():
    data = dns.query(HOST)
    assert with_id(data, 0xABCD) == b"\xab\xcd" + data[2:]


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(data):
    for read in (read_query, read_answer):
        try:
            read(data)
        except (Malformed, Unanswerable):
            continue


@settings(deadline=None)
@given(st.data())
def test_damaged_messages_are_read_or_refused(data):
    whole = bytearray(
        data.draw(
            st.sampled_from(
                [
                    dns.response(HOST, dns.alias(POINTER, "b.example"), dns.address("b.example", "192.0.2.1")),
                    dns.query(HOST, additional=[dns.opt(b"\0\x0f\0\2\0\0")]),
                ]
            )
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        answer = read_answer(damaged)
    except Malformed:
        pass
    else:
        assert len(answer.addresses) <= 1
    try:
        query = read_query(damaged)
    except Unanswerable as error:
        query = error.query
    except Malformed:
        return
    assert isinstance(query, Query)
    read_answer(refusal(query, Rcode.SERVFAIL))
