"""The administration pages over real HTTP: who may see them, what they show, what they change."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from sidecar import logs
from sidecar.access_log import AccessLog
from sidecar.admin.pages import AdminPages, NotYet
from sidecar.admin.server import HttpServer
from sidecar.settings import Address
from tests.sidecar.fake_controller import until
from tests.sidecar.http_client import get


class Writer:
    shed = 2

    def write(self, line):
        raise AssertionError("nothing happens that could be logged")

    def stop(self):
        """Nothing waits."""


class Served:
    def __init__(self):
        self.missing = ["no certificate yet"]
        self.ended = 0
        self.access_log = AccessLog(Writer())
        pages = AdminPages(
            {"/config": lambda: {"a": 1}, "/certs": self._not_yet},
            lambda: self.missing,
            self.access_log,
            self._end,
        )
        self.server = HttpServer(Address("127.0.0.1", 0), "admin_listen", pages.answer, ("GET", "HEAD", "POST"))

    def _not_yet(self):
        raise NotYet

    def _end(self):
        self.ended += 1

    async def get(self, target, *fields, method="GET", host="localhost"):
        status, _, body = await get(self.server.port, target, *fields, method=method, host=host)
        return status, body.decode()

    async def post(self, target, *fields, **how):
        return await self.get(target, *fields, method="POST", **how)


@pytest.fixture
async def served():
    made = Served()
    await made.server.start()
    yield made
    await made.server.stop()


async def test_a_view(served):
    status, body = await served.get("/config")
    assert (status, json.loads(body)) == (200, {"a": 1})


async def test_what_needs_a_certificate_says_what_is_missing(served):
    assert await served.get("/certs") == (503, "no certificate yet\n")
    assert await served.get("/healthz/ready") == (503, "no certificate yet\n")
    served.missing = []
    assert await served.get("/healthz/ready") == (200, "ready\n")


async def test_the_first_page_says_what_there_is(served):
    status, body = await served.get("/")
    assert status == 200
    for page in ("/config", "/certs", "/tunnels", "/snapshot", "/connections", "/stats", "/memory", "/quitquitquit"):
        assert page in body
    assert (await served.get("/nothing"))[0] == 404


@pytest.mark.parametrize(
    "target", ["/", "/config", "/healthz/ready", "/logging", "/access-log", "/profile", "/quitquitquit"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("host", "fields"),
    [
        ("rebound.example.com:15000", ()),
        ("localhost", ("Origin: http://evil.example.com",)),
        ("localhost", ("Sec-Fetch-Site: cross-site",)),
    ],
)
async def test_nothing_is_for_web_pages(served, target, method, host, fields):
    assert (await served.get(target, *fields, method=method, host=host))[0] == 403
    assert served.ended == 0


async def test_quitting_takes_post(served):
    assert (await served.get("/quitquitquit"))[0] == 405
    assert (await served.post("/quitquitquit?x=1"))[0] == 400
    assert served.ended == 0
    assert await served.post("/quitquitquit") == (200, "draining\n")
    assert served.ended == 1


async def test_what_only_shows_takes_no_post(served):
    for target in ("/", "/config", "/healthz/ready"):
        assert (await served.post(target))[0] == 405, target


async def test_the_access_log_is_switched(served):
    assert json.loads((await served.get("/access-log"))[1]) == {"mode": "off", "lines": 0, "shed": 2}
    assert json.loads((await served.post("/access-log?mode=errors"))[1])["mode"] == "errors"
    assert served.access_log.mode == "errors"
    for target in ("/access-log", "/access-log?mode=", "/access-log?mode=some"):
        status, body = await served.post(target)
        assert (status, "off, errors, all" in body) == (400, True)
    assert (await served.get("/access-log?mode=all"))[0] == 405
    assert served.access_log.mode == "errors"


@pytest.fixture
def levels():
    root, ours = logging.getLogger(), logging.getLogger("sidecar.admin.server")
    before = root.level, ours.level
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])


@pytest.mark.usefixtures("levels")
async def test_levels_are_changed(served):
    status, body = await served.post("/logging?level=debug&logger=sidecar.admin.server")
    assert status == 200
    assert json.loads(body)["sidecar.admin.server"] == "debug"
    assert logging.getLogger("sidecar.admin.server").level == logging.DEBUG
    assert json.loads((await served.post("/logging?level=error"))[1])["root"] == "error"
    assert logging.getLogger().level == logging.ERROR
    assert json.loads((await served.get("/logging"))[1]) == logs.levels()


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/logging", 400),
        ("/logging?level=loud", 400),
        ("/logging?logger=sidecar", 400),
        ("/logging?level=debug&logger=made.up.just.now", 404),
        ("/logging?level=debug&level=info", 400),
    ],
)
async def test_levels_that_can_not_be_set(served, target, status):
    before = logs.levels()
    assert (await served.post(target))[0] == status
    assert (await served.get("/logging?level=debug"))[0] == 405
    assert logs.levels() == before
    assert "made.up.just.now" not in logging.getLogger().manager.loggerDict


async def test_one_profile_at_a_time(served):
    first = asyncio.create_task(served.get("/profile?seconds=2"))
    await until(lambda: served.server.connections == 1)
    await asyncio.sleep(0)
    refused = await until_refused(served)
    assert "already" in refused
    status, body = await first
    assert status == 200
    assert all(line.rpartition(" ")[2].isdecimal() for line in body.splitlines())
    assert (await served.post("/profile?seconds=0.05"))[0] == 200


async def until_refused(served):
    """What the second one is told, once the first has begun."""
    async with asyncio.timeout(20):
        while True:
            status, body = await served.get("/profile?seconds=0.01")
            if status == 409:
                return body


@pytest.mark.parametrize("seconds", ["0", "61", "-1", "x", "1e3", "", "nan", "1.2.3", "."])
async def test_profiles_have_an_end(served, seconds):
    status, body = await served.get(f"/profile?seconds={seconds}")
    assert status == 400
    assert "up to 60" in body or "seconds=…" in body
