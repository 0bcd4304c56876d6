"""One line for every event, on standard error: ``2026-01-31T12:00:00.123Z WARNING sidecar.channel controller is away``.

A message can hold what a peer wrote; control characters are escaped, so that nobody forges a line. Libraries that
write into their debug lines what passes through them (headers, credentials among them) never get to write those.
"""

from __future__ import annotations

import logging
import sys
import time


class LineFormatter(logging.Formatter):
    """Time in UTC, level, logger, message; a traceback follows on the same line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname} {record.name} {escape(text)}"


def escape(text: str) -> str:
    """Write control characters and line separators as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(level: str) -> None:
    """Send every log record of this process to standard error.

    :param level: ``debug``, ``info``, ``warning`` or ``error``
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    _keep_secrets()


#: Whose debug lines hold headers and bodies.
_TELLTALES = ("hpack", "h2", "hyperframe", "mitmproxy")


def _keep_secrets() -> None:
    for name in _TELLTALES:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


#: What a level may be called.
LEVELS = ("debug", "info", "warning", "error")


def levels() -> dict[str, str]:
    """The loggers whose level was set, and the level of all others under ``root``."""
    root = logging.getLogger()
    named = {
        name: logging.getLevelName(logger.level).lower()
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {"root": logging.getLevelName(root.level).lower(), **named}


def set_level(level: str, name: str = "") -> None:
    """Change what is logged from now on.

    :param level: one of :data:`LEVELS`; of a library that would log what passes, ``info`` at least
    :param name: of a logger that exists, such as ``sidecar.dataplane``; empty: of all that have no level of their own
    :raises KeyError: when there is no such logger; none is made, or a loop of requests could make any number of them
    """
    logger = logging.getLogger()
    if name and name != "root":
        if name not in logger.manager.loggerDict:
            raise KeyError(name)
        logger = logging.getLogger(name)
    if logger.name.partition(".")[0] in _TELLTALES and level == "debug":
        level = "info"
    logger.setLevel(level.upper())
    _keep_secrets()
