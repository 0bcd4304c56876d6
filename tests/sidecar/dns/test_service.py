"""The DNS proxy as a part of the sidecar: where it listens, whom it asks, what it keeps for the next run."""

from __future__ import annotations

import asyncio

import pytest

from graph.fields import Address as Given
from sidecar.dataplane.sockets import Address
from sidecar.dns import service
from sidecar.dns.service import DnsService, proxy_settings
from sidecar.dns.settings import Dns
from sidecar.state import NAMES, StateDirectory
from tests.sidecar.dataplane.applications import until

HERE, BESIDE = Address("127.0.0.1", 15053), Address("::1", 15053)
RESOLVER = "nameserver 10.96.0.10\n"


@pytest.fixture
def state(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


def made(state, now=1000.0, dns=None):
    return DnsService(dns or Dns(), ["10.0.0.7"], 0, state, lambda: True, lambda: now)


@pytest.mark.parametrize(
    ("dns", "addresses", "resolv_conf", "listen", "upstreams"),
    [
        (Dns(), ["10.0.0.7"], RESOLVER, (HERE,), (Address("10.96.0.10", 53),)),
        (Dns(), ["10.0.0.7", "fd00::7"], RESOLVER, (HERE, BESIDE), (Address("10.96.0.10", 53),)),
        (Dns(), ["10.0.0.7"], "nameserver fd00::a", (HERE, BESIDE), (Address("fd00::a", 53),)),
        (Dns(upstreams=(Given("10.1.1.1", 54),)), ["10.0.0.7"], RESOLVER, (HERE,), (Address("10.1.1.1", 54),)),
        (Dns(listen=Given("10.0.0.7", 53)), ["fd00::7"], "nameserver 10.0.0.7", (Address("10.0.0.7", 53),), ()),
        (Dns(), ["10.0.0.7"], "", (HERE,), ()),
    ],
)
def test_where_it_listens_and_whom_it_asks(dns, addresses, resolv_conf, listen, upstreams):
    settings = proxy_settings(dns, addresses, 7, resolv_conf)
    assert (settings.listen, settings.upstreams, settings.mark) == (listen, upstreams, 7)


def test_what_may_be_set_bounds_the_proxy_and_the_names(state):
    dns = Dns(patience=0.1, deadline=0.2, in_flight=3, connections=4, pipelined=5, idle=6.0, addresses=2, names=1)
    settings = proxy_settings(dns, ["10.0.0.7"], 0, RESOLVER)
    for name in ("patience", "deadline", "in_flight", "connections", "pipelined", "idle"):
        assert getattr(settings, name) == getattr(dns, name), name
    service = made(state, dns=dns)
    for number in range(3):
        service._table.bind("a.example.com", [(f"192.0.2.{number}", 60.0)], 1000.0)
    assert service._table.addresses == 2
    service._table.bind("b.example.com", [("192.0.2.2", 60.0)], 1000.0)
    assert service.names.bound("192.0.2.2") == ("b.example.com",)


def test_a_pod_without_resolv_conf(state, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(service, "RESOLV_CONF", tmp_path / "none")
    assert made(state)._proxy._settings.upstreams == ()
    assert "no resolver is known from it" in caplog.text


async def test_names_survive_a_restart(state):
    first = made(state)
    first._table.bind("api.example.com", [("192.0.2.1", 60)], 1000.0)
    await first.persist()
    second = made(state, now=1100.0)
    second.restore()
    assert second.names.bound("192.0.2.1") == ("api.example.com",)
    later = made(state, now=2000.0)
    later.restore()
    assert later.names.bound("192.0.2.1") == ()


async def test_upkeep_writes_what_was_learned(state, monkeypatch):
    monkeypatch.setattr(service, "_UPKEEP", 0.01)
    running = made(state)
    keeping = asyncio.ensure_future(running.upkeep())
    running._table.bind("api.example.com", [("192.0.2.1", 60)], 1000.0)
    await until(lambda: state.read_checked(NAMES) is not None)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("damage", [b"x", b"[[1]]"])
def test_damaged_names_are_not_used(state, caplog, damage):
    state.write_checked(NAMES, damage)
    again = made(state)
    again.restore()
    assert again.names.bound("192.0.2.1") == ()
    assert "not used" in caplog.text


def test_it_tells_what_became_of_the_questions(state):
    assert made(state).stats() == {
        "addresses": 0,
        "queries": 0,
        "answered": 0,
        "failed": 0,
        "refused": 0,
        "shed": 0,
        "strangeness": {"strays": 0, "malformed": 0},
    }
