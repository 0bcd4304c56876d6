"""The access log: Istio's fields, nobody's secrets, and nobody waits for it."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from graph.model import Direction, PortRange, Rule, Selector
from graph.policy import Reason
from sidecar.access_log import MAX_FIELD, AccessLog, LogWriter, Mode
from sidecar.dataplane.live import refusal
from sidecar.metrics.fanout import Fanout
from tests.sidecar.metrics.records import ALLOWED, CART_ID, DENIED, FRONT_ID, record, refused, request


class Lines:
    """Implements what :class:`AccessLog` asks of a writer, in memory."""

    shed = 0

    def __init__(self):
        self.raw = []

    def write(self, line):
        self.raw.append(line)

    def stop(self):
        """Nothing waits."""

    def __getitem__(self, index):
        return json.loads(self.raw[index])

    def __len__(self):
        return len(self.raw)


@pytest.fixture
def lines():
    return Lines()


def access_log(lines, mode=Mode.ALL, now=1002.5):
    made = AccessLog(lines, lambda: now)
    made.mode = mode
    return made


def test_a_request_in_istios_words(lines):
    asked = request(
        record(service="shop/basket"),
        status=201,
        method="POST",
        path="/cart/7?token=secret#part",
        host="cart.shop",
        user_agent="curl/8",
        request_id="r-1",
        seconds=0.25,
    )
    access_log(lines).request(asked)
    assert lines[0] == {
        "start_time": "1970-01-01T00:16:42.250Z",
        "method": "POST",
        "path": "/cart/7",
        "protocol": "HTTP/1.1",
        "response_code": 201,
        "response_flags": "-",
        "response_code_details": None,
        "bytes_received": 300,
        "bytes_sent": 4000,
        "duration": 250,
        "authority": "cart.shop",
        "user_agent": "curl/8",
        "request_id": "r-1",
        "operation": "GET /cart/{id}",
        "grpc_status": None,
        "verdict": "allow",
        "pending": "allow",
        "reason": "allow-rule",
        "rule": None,
        "upstream_host": "10.0.0.2:8080",
        "upstream_cluster": "inbound|8080||",
        "downstream_remote_address": "10.0.0.1",
        "requested_server_name": None,
        "direction": "inbound",
        "source": "shop/front",
        "destination": "shop/cart",
        "source_principal": FRONT_ID,
        "destination_principal": CART_ID,
    }


def test_a_connection_is_logged_when_it_ends(lines):
    log = access_log(lines)
    one = record(Direction.OUTBOUND, bytes_sent=10, bytes_received=700, service="shop/basket")
    log.opened(one)
    assert not len(lines)
    one.closed = True
    log.closed(one)
    line = lines[0]
    assert line["start_time"] == "1970-01-01T00:16:40.000Z"
    assert (line["duration"], line["bytes_received"], line["bytes_sent"]) == (2500, 10, 700)
    assert (line["response_code"], line["response_flags"], line["protocol"]) == (0, "-", None)
    assert line["upstream_cluster"] == "outbound|8080||basket"


def test_a_refusal_names_the_rule(lines):
    rule = Rule("override/7", Selector(), Selector(), (PortRange(80, 80),), owner="anna")
    decision = type(DENIED)(DENIED.verdict, DENIED.pending, Reason.DENY_OVERRIDE, rule)
    access_log(lines).opened(refused(decision))
    line = lines[0]
    assert (line["response_flags"], line["verdict"], line["rule"]) == ("DENY", "deny", "override/7")
    assert line["connection_termination_details"] == "hedgerow_denied_deny-override"


def test_a_connection_whose_requests_are_logged_is_not_logged_again(lines):
    log = access_log(lines)
    one = record(protocol="http")
    log.opened(one)
    log.request(request(one))
    log.request(request(one))
    one.closed = True
    log.closed(one)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("asked", "logged"),
    [
        ({}, False),
        ({"status": 399}, False),
        ({"status": 400}, True),
        ({"status": 500}, True),
        ({"status": 0}, True),
        ({"status": 403, "decision": DENIED}, True),
        ({"protocol": "grpc", "grpc_status": 0}, False),
        ({"protocol": "grpc", "grpc_status": 14}, True),
    ],
)
def test_only_errors(lines, asked, logged):
    access_log(lines, Mode.ERRORS).request(request(record(), **asked))
    assert len(lines) == logged


@pytest.mark.parametrize(
    ("one", "logged"),
    [
        (record(closed=True), False),
        (record(closed=True, failed=True), True),
        (refused(), True),
        (refused(refusal(Reason.UNRESOLVED)), True),
    ],
)
def test_only_connections_that_failed(lines, one, logged):
    log = access_log(lines, Mode.ERRORS)
    (log.closed if one.decision.allowed else log.opened)(one)
    assert len(lines) == logged


def test_nobody_forges_a_line(lines):
    nasty = 'x"}\r\n{"path":"/fake"}\x1b[2J\x7f\u2028\ud800\u00e9\\'
    access_log(lines).request(
        request(record(), path=nasty, method=nasty, host=nasty, user_agent=nasty, request_id=nasty)
    )
    (raw,) = lines.raw
    assert raw.endswith(b"}\n")
    assert all(0x20 <= byte < 0x7F for byte in raw[:-1])
    assert lines[0]["user_agent"] == nasty


def test_long_fields_are_cut(lines):
    access_log(lines).request(request(record(), path="/" + "a" * 100_000, user_agent="b" * 100_000))
    assert len(lines[0]["path"]) == len(lines[0]["user_agent"]) == MAX_FIELD
    assert len(lines.raw[0]) < 4096


def test_off_nobody_tells_it_of_anything(lines):
    fanout = Fanout()
    log = AccessLog(lines, lambda: 1.0, lambda on: fanout.add(log) if on else fanout.remove(log))
    fanout.request(request(record()))
    log.mode = Mode.ALL
    log.mode = Mode.ALL
    fanout.request(request(record()))
    log.mode = Mode.OFF
    fanout.request(request(record()))
    assert len(lines) == log.lines == 1


def test_switched_on_in_the_middle_it_takes_what_comes(lines):
    log = access_log(lines, Mode.OFF)
    one = record()
    log.opened(one)
    log.mode = Mode.ALL
    one.closed = True
    log.closed(one)
    assert len(lines) == 1


# the writer


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor == reading  # a test closed it


def read_lines(descriptor, count):
    data = b""
    while data.count(b"\n") < count:
        data += os.read(descriptor, 1 << 16)
    return data.splitlines()


def test_lines_come_whole_and_in_order(pipe):
    reading, writing = pipe
    writer = LogWriter(writing)
    for index in range(1000):
        writer.write(b"%d\n" % index)
    assert read_lines(reading, 1000) == [b"%d" % index for index in range(1000)]
    writer.stop()
    assert (writer.waiting, writer.shed) == (0, 0)


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe):
    reading, writing = pipe
    writer = LogWriter(writing, limit=200_000)
    line = b"x" * 999 + b"\n"
    for _ in range(2000):  # a pipe holds 64 KiB
        writer.write(line)
    assert writer.waiting <= 200_000
    assert writer.shed >= 2000 - 200 - 66 - 66
    kept = 2000 - writer.shed
    assert all(one == line[:-1] for one in read_lines(reading, kept))
    writer.stop()
    assert writer.waiting == 0


def test_a_reader_that_is_gone_ends_the_log(pipe, caplog):
    reading, writing = pipe
    os.close(reading)
    writer = LogWriter(writing)
    writer.write(b"lost\n")
    end = time.monotonic() + 20
    while not writer.shed and time.monotonic() < end:
        writer.write(b"shed\n")
        threading.Event().wait(0.005)
    assert writer.shed
    assert "the access log can not be written and ends" in caplog.text
    writer.stop()


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe):
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    line = b"y" * 999 + b"\n"
    for _ in range(300):
        writer.write(line)
    assert len(read_lines(reading, 300)) == 300
    writer.stop()


def test_stop_writes_what_waits(pipe):
    reading, writing = pipe
    writer = LogWriter(writing)
    writer.write(b"last\n")
    writer.stop()
    assert os.read(reading, 100) == b"last\n"


def test_allowed_requests_have_no_denial(lines):
    access_log(lines).request(request(record(failed=True), decision=ALLOWED, status=503))
    assert (lines[0]["response_flags"], lines[0]["response_code_details"]) == ("UF", None)


def test_what_we_answer_ourselves_says_why(lines):
    log = access_log(lines)
    log.request(request(record(), decision=ALLOWED, status=403, detail="addon-refused"))
    log.request(request(record(), decision=DENIED, status=403))
    log.request(request(record(), decision=DENIED, status=421, detail="other-host"))
    said = [line["response_code_details"] for line in (lines[0], lines[1], lines[2])]
    assert said == ["hedgerow_addon-refused", "hedgerow_denied_no-rule", "hedgerow_denied_other-host"]
