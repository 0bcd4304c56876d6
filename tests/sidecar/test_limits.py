"""Every limit of the data path can be set, within bounds, by its own name."""

from __future__ import annotations

import dataclasses
import re

import pytest

from sidecar import access_log, authority, directory, state
from sidecar.admin import server
from sidecar.app import data_plane_settings
from sidecar.capture_settings import Explicit
from sidecar.dataplane import (
    attempt,
    balance,
    chores,
    egress,
    outbound,
    pool,
    reactor,
    server_first,
    stream,
    tunnel,
    warmth,
)
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.directory_settings import DirectorySettings
from sidecar.dns.settings import Dns
from sidecar.errors import ConfigError
from sidecar.http.settings import HttpSettings
from sidecar.inspect import taps
from sidecar.inspect.settings import InspectSettings
from sidecar.limits import CHECKS, HTTP_CHECKS
from sidecar.observation import MetricSettings
from sidecar.outbox import Outbox
from sidecar.settings import MAX_WORKERS, Address, Settings
from sidecar.workers import link
from tests.settings_page import DOCS, section, table_rows

NEEDED = {
    "instance": "cart-1",
    "controller": "10.0.0.1:15012",
    "issuer": "10.0.0.1:15013",
    "trust_domain": "hedgerow.test",
    "trust_bundle": "bundle.pem",
    "state_dir": "state",
    "addresses": ["10.0.0.7"],
}
DEFAULTS = {one.name: one.default for one in dataclasses.fields(DataPlaneSettings)}


def parsed(**limits: object) -> DataPlaneSettings:
    return data_plane_settings(Settings.parse({**NEEDED, "limits": limits}))


def test_every_number_of_the_data_path_is_a_limit_that_can_be_set():
    numbers = {name for name, default in DEFAULTS.items() if isinstance(default, int | float)}
    assert numbers - {"mark"} == set(CHECKS)


def test_without_the_section_the_defaults_hold():
    made = data_plane_settings(Settings.parse(NEEDED))
    assert {name: getattr(made, name) for name in CHECKS} == {name: DEFAULTS[name] for name in CHECKS}
    assert Settings.parse({**NEEDED, "limits": {}}) == Settings.parse(NEEDED)


@pytest.mark.parametrize("name", CHECKS)
def test_the_default_of_each_can_be_written(name: str):
    assert getattr(parsed(**{name: DEFAULTS[name]}), name) == DEFAULTS[name]


@pytest.mark.parametrize("name", CHECKS)
def test_each_reaches_the_data_path(name: str):
    other = {"backoff": 0.5, "memory_low": 0.7, "memory_high": 0.95, "memory_limit": 1 << 30}.get(name)
    value = other if other is not None else type(DEFAULTS[name])(DEFAULTS[name] + 1)
    assert getattr(parsed(**{name: value}), name) == value


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("value", [-1, 1e18, float("nan"), "10", True, None])
def test_what_is_out_of_bounds_is_refused_by_name(name: str, value: object):
    with pytest.raises(ConfigError, match=rf"^limits\.{name}: .*; write a? ?\w+"):
        parsed(**{name: value})


@pytest.mark.parametrize("name", ["connection_idle", "half_closed_idle", "slow_reader", "memory_limit"])
def test_what_can_be_without_limit_says_so(name: str):
    assert getattr(parsed(**{name: 0}), name) == 0


def test_every_bound_of_the_http_lane_can_be_set():
    made = HttpSettings()
    assert set(HTTP_CHECKS) == {one.name for one in dataclasses.fields(HttpSettings)}
    for name in HTTP_CHECKS:
        default = getattr(made, name)
        other = "01" if name == "trace_flags" else type(default)(default + 1)
        for value in (default, other):
            settings = Settings.parse({**NEEDED, "http": {name: value}})
            assert data_plane_settings(settings).http == dataclasses.replace(made, **{name: value})
        with pytest.raises(ConfigError, match=rf"^http\.{name}: "):
            Settings.parse({**NEEDED, "http": {name: -1}})
    with pytest.raises(ConfigError, match=r"http\.head_byte: unknown limit; did you mean 'head_bytes'"):
        Settings.parse({**NEEDED, "http": {"head_byte": 5000}})


def test_a_misspelt_limit_is_refused_with_its_name():
    with pytest.raises(ConfigError, match=r"limits\.conections: unknown limit; did you mean 'connections'"):
        parsed(conections=5)
    with pytest.raises(ConfigError, match="limits: a list is not a mapping"):
        Settings.parse({**NEEDED, "limits": [1]})


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"limits\.memory_low: 0\.8 is above memory_high, which is 0\.5"):
        parsed(memory_high=0.5)
    with pytest.raises(ConfigError, match=r"limits\.backoff: 5 is above backoff_max"):
        parsed(backoff=5)


def rows() -> dict[str, str]:
    """Names and defaults as the page's tables give them."""
    found = table_rows((DOCS / "sidecar-settings.md").read_text())
    return {name: default for name, (default, *_) in found.items() if not name.startswith("hedgerow_")}  # metrics


#: Sections of which every setting stands on the page.
SECTIONS = {
    "dns": Dns,
    "directory": DirectorySettings,
    "metrics": MetricSettings,
    "explicit": Explicit,
    "http": HttpSettings,
    "inspect": InspectSettings,
}


#: What can not be set, by its name on the page, as numbers of the code.
FIXED = {
    "window of a stream in a tunnel": (stream.MAX_WINDOW,),
    "what OpenSSL has to say to a tunnel's peer that does not read": (tunnel._UNASKED,),
    "tunnel ended in good order, until its peer closes it": (tunnel._LINGER, tunnel._LINGER_BYTES),
    "head of a request that is read for its host name, on a connection to a host outside": (egress.MAX_HEAD,),
    "first bytes of a connection whose server is awaited": (server_first._KEPT,),
    "endpoints tried for one connection in one go": (balance.CANDIDATES,),
    "dials that one connection waits for, when the tunnels end at once": (pool._DIALS,),
    "destinations known to have answered": (outbound._KNOWN,),
    "endpoints of one destination whose peers are remembered": (attempt._PEERS,),
    "decisions of each kind that are remembered": (authority.MAX_DECISIONS,),
    "ports whose rules are kept apart": (authority.MAX_INDEXED_PORTS,),
    "work for one who is ready before others are": (chores.SLICE, reactor._LONGEST_TURN),
    "destinations that are dialled after a start at once": (warmth.AT_ONCE,),
    "clients of one page of ours at once": (server.MAX_CONNECTIONS,),
    "lines of the access log that nobody takes": (access_log.MAX_WAITING,),
    "reports that the controller has not taken": (Outbox()._max_flows,),
    "events of a tap that nobody takes": (taps._WAITING, taps._WAITING_BYTES),
    "what one process of the sidecar has to say to another": (link.MAX_WAITING,),
    "endpoints of all of the directory's answers": (directory.MOST_ENDPOINTS,),
    "time for answers that the controller sends without end": (directory.ANSWERING_SHARE * 100,),
    "a file of the state directory": (state.MAX_STATE_BYTES,),
    "processes": (MAX_WORKERS,),
}
UNITS = {"": 1, "s": 1, "ms": 1e-3, "KiB": 1 << 10, "MiB": 1 << 20}


def test_the_page_tells_what_is_fixed():
    page = section((DOCS / "sidecar-settings.md").read_text(), "### What is fixed")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    written = {name: re.findall(r"([\d.]+)(?: (ms|s|KiB|MiB)\b)?", value) for name, value, _ in rows[2:]}
    numbers = {name: tuple(float(number) * UNITS[unit] for number, unit in found) for name, found in written.items()}
    assert numbers == {name: tuple(map(float, values)) for name, values in FIXED.items()}


#: Sections inside of those.
INNER = {"inspect.limits", "inspect.egress"}


def defaults() -> dict[str, object]:
    """Every setting but the limits, and its default."""
    found: dict[str, object] = {}
    for one in dataclasses.fields(Settings):
        if one.name in SECTIONS:
            parts = {f"{one.name}.{part.name}": part.default for part in dataclasses.fields(SECTIONS[one.name])}
            for section in parts.keys() & INNER:
                inner = dataclasses.asdict(parts.pop(section))
                parts |= {f"{section}.{name}": value for name, value in inner.items()}
            found |= parts
        elif one.name != "limits":
            found[one.name] = one.default
    return found


def test_the_page_tells_of_every_setting_and_of_no_other():
    assert set(rows()) == set(defaults()) | {f"limits.{name}" for name in CHECKS}


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_gives_the_default_of_each_limit(name: str):
    written = rows()[f"limits.{name}"]
    number = re.match(r"([\d.]+)( MiB)?", written)
    assert number, written
    assert float(number[1]) * ((1 << 20) if number[2] else 1) == DEFAULTS[name]


def test_the_page_gives_the_default_of_each_setting():
    captured = Settings.parse(NEEDED)
    for name, default in defaults().items():
        written = rows()[name]
        if name == "inspect.egress.roots":
            assert written == "the system's"
            continue
        if name in ("admin_listen", "stats_listen"):
            assert written == f"`{getattr(captured, name)}` with `redirect`, else nowhere"
            continue
        if default is dataclasses.MISSING:
            assert written == "**needed**", name
        elif default in (None, (), "", frozenset()):
            assert written == "–", name
        elif isinstance(default, frozenset):
            assert [int(number) for number in written.split(",")] == sorted(default), name
        elif isinstance(default, tuple) and not isinstance(default, Address):
            assert written == f"`[{', '.join(default)}]`", name
        elif isinstance(default, bool):
            assert written == ("`on`" if default else "`off`"), name
        elif isinstance(default, int | float):
            assert float(written.split()[0]) == default, name
        else:
            assert written == f"`{default}`", name
