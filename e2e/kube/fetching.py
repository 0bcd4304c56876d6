"""Commands that fetch from registries, tried again when it is the network that failed.

Registries have hiccups, and what is fetched here is thousands of files: one that does not come would end a build of ten
minutes. What failed for another reason would fail again, and is not tried again.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ATTEMPTS = 4
#: Before the second attempt, seconds; twice as long before each one after it.
PAUSE = 5.0
#: What Go, pip and debootstrap say when nobody answers, or one who can not.
_NETWORK = re.compile(
    r"i/o timeout|time-?d? ?out|deadline exceeded|connection (?:reset|refused|aborted|broken)|broken pipe"
    r"|unexpected EOF|: EOF\b|no such host|name resolution|network is unreachable|TLS handshake|stream error"
    r"|GOAWAY|Max retries exceeded|IncompleteRead|couldn't download"
    r"|429 Too Many|500 Internal|502 Bad|503 Service|504 Gateway|HTTP error (?:429|5\d\d)|5\d\d Server Error",
    re.IGNORECASE,
)


def fetch(
    command: Sequence[str | Path],
    *,
    say: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    before: Callable[[], None] = lambda: None,
    pause: float = PAUSE,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, at most :data:`ATTEMPTS` times.

    :param say: told when it is tried again, and why
    :param before: done before every attempt but the first, such as taking away what the one before left
    :param pause: before the second attempt, seconds
    :returns: how the last attempt ended, with its output
    """
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False)
        reason = _hiccup(done) if done.returncode else ""
        if not reason or attempt == ATTEMPTS:
            return done
        wait = pause * 2 ** (attempt - 1)
        say(f"{command[0]} is tried again in {wait:.0f} s ({attempt + 1} of {ATTEMPTS}): {reason}")
        time.sleep(wait)  # nothing tells that a registry is well again, and asking at once is what it has too much of
        before()
    raise AssertionError("no attempt")


def _hiccup(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that blames the network; empty when none does."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if _NETWORK.search(line)]
    return lines[-1].strip()[:300] if lines else ""
