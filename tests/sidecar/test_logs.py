from __future__ import annotations

import logging
import re
import sys

import pytest

from sidecar.logs import LineFormatter, escape, levels, set_level


def record(message, *arguments, exc_info=None):
    return logging.LogRecord("sidecar.x", logging.WARNING, __file__, 1, message, arguments, exc_info)


def test_one_line_with_time_level_and_logger():
    line = LineFormatter().format(record("hello %s", "you"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING sidecar\.x hello you", line)


def test_nobody_forges_a_line():
    line = LineFormatter().format(
        record("peer said %s", "x\r\n2026-01-01T00:00:00.000Z ERROR sidecar fake\x1b[2J\u2028")
    )
    assert line.isprintable()
    assert "\\r\\n2026" in line


def test_a_traceback_stays_on_its_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = LineFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError" in line


def test_plain_text_is_kept():
    assert escape("naïve → text") == "naïve → text"


@pytest.fixture
def named():
    logger, root = logging.getLogger("sidecar.for_this_test"), logging.getLogger()
    before = root.level
    yield logger
    logger.setLevel(logging.NOTSET)
    root.setLevel(before)


@pytest.mark.parametrize("name", ["", "root", "hpack", "hpack.hpack"])
def test_what_passes_is_not_logged_at_any_level(named, caplog, name):
    """Found by a review: hpack's debug lines are the headers that it packs and unpacks, Authorization among them."""
    import hpack

    set_level("debug", name)
    packed = hpack.Encoder().encode([("authorization", "Bearer of-tidings")])
    assert hpack.Decoder().decode(packed)
    assert not [line for line in caplog.messages if "tidings" in line]
    assert levels()["hpack"] == "info"


def test_a_level_is_set_for_one_logger_or_for_all(named):
    set_level("debug", named.name)
    assert named.level == logging.DEBUG
    assert levels()[named.name] == "debug"
    set_level("error")
    assert levels()["root"] == "error"
    set_level("warning", "root")
    assert levels()["root"] == "warning"
    assert named.level == logging.DEBUG


def test_no_logger_is_made_up():
    with pytest.raises(KeyError):
        set_level("debug", "sidecar.nobody.has.this")
    assert "sidecar.nobody.has.this" not in logging.getLogger().manager.loggerDict
