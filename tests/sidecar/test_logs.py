from __future__ import annotations

import logging
import re
import sys

from sidecar.logs import LineFormatter, escape


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
