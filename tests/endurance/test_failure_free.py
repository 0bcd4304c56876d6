"""Snapshots, renewals of certificates and restarts, one after the other and all at once, and not one request fails.

How many of each is set by ``HEDGEROW_PUSHES``, ``HEDGEROW_ROTATIONS`` and ``HEDGEROW_RESTARTS`` (of each side), and how
many requests a second meanwhile by ``HEDGEROW_RESTART_RATE``. What a release has to show: 1000, 200, 20 and 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from pathlib import Path

import pytest

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Origin, PortRange, Rule, Selector, Verdict
from tests.endurance.clients import Held, HttpLoad
from tests.sidecar.fake_controller import TRUST_DOMAIN, WORKLOAD, FakeController, snapshot
from tests.sidecar.processes import CART_ADDRESS, FRONT, FRONT_ADDRESS, Process, echo, free_port

PUSHES = int(os.environ.get("HEDGEROW_PUSHES", "100"))
ROTATIONS = int(os.environ.get("HEDGEROW_ROTATIONS", "8"))
RESTARTS = int(os.environ.get("HEDGEROW_RESTARTS", "2"))
RATE = float(os.environ.get("HEDGEROW_RESTART_RATE", "200"))
#: Of a certificate, seconds; renewed after 45 % to 55 % of it. What lives on is proved again after 70 % to 85 %, and
#: the rest is what a busy machine may be late.
LIFETIME = 20.0
#: Seconds that an old process may take to let its connections end; the clients here never need so long.
DRAIN = 20.0
#: Snapshots a second.
PUSH_RATE = 25
#: Seconds that a client keeps a connection: it has to end before an old process does, which can not ask for it where it
#: carries bytes without looking at them.
AGE = DRAIN / 4
#: Seconds without a request after which it ends one: while a sidecar drains, it ends those that are idle for two.
IDLE = 0.5
#: Seconds in which something happens that does not have to wait for anything, on a machine that is busy.
SLOW = 120.0

#: Seconds in which half of all renewals, or of all snapshots, have happened, on a machine that is busy.
RENEWED, PUSHED = SLOW + ROTATIONS * LIFETIME, SLOW + 4 * PUSHES / PUSH_RATE

pytestmark = pytest.mark.timeout(2 * (RENEWED + PUSHED) + 2 * RESTARTS * (DRAIN + 10))


async def until(condition, what: str, seconds: float = SLOW) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what it looks at is in other processes
            await asyncio.sleep(0.02)
    assert condition(), what


class Shop:
    """front → cart, each with its sidecar: HTTP to nginx, and what nobody looks into to an echo service."""

    def __init__(self, controller: FakeController, directory: Path) -> None:
        self.controller = controller
        self.directory = directory
        self.web, self.store = free_port(CART_ADDRESS), free_port(CART_ADDRESS)
        self.entrances = {self.web: free_port(), self.store: free_port()}
        self.applications = {self.web: free_port(), self.store: free_port()}
        services = (self.web, self.store)
        out = [
            {"listen": f"127.0.0.1:{self.entrances[port]}", "destination": f"{CART_ADDRESS}:{port}"}
            for port in services
        ]
        into = [
            {"listen": f"{CART_ADDRESS}:{port}", "application": f"127.0.0.1:{self.applications[port]}"}
            for port in services
        ]
        more = {"drain_seconds": DRAIN, "opaque_ports": [self.store]}
        self.front = Process(controller, directory, FRONT, FRONT_ADDRESS, explicit={"outbound": out}, **more)
        self.cart = Process(controller, directory, WORKLOAD, CART_ADDRESS, explicit={"inbound": into}, **more)
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        for port in services:
            endpoints = (Endpoint(CART_ADDRESS, port, "cart-1", identity),)
            controller.answer(Destination(CART_ADDRESS, port, workload=WORKLOAD, meshed=True, endpoints=endpoints))
        self.version = 0
        self.signed = 0

    def push(self) -> None:
        """Another policy for both, by which everything that is done here is allowed, differently every time."""
        self.version += 1
        number = self.version
        ends = (Selector.of(FRONT), Selector.of(WORKLOAD))
        asked = ("GET /items/{id}",) if number % 2 else ()
        rules = (
            Rule("learned/1", *ends, (PortRange.single(self.web),), operations=asked),
            Rule(f"learned/{number + 1}", *ends, (PortRange.single(self.store),)),
            Rule(f"override/{number}", *ends, (PortRange.single(self.web),), operations=(f"DELETE /items/{number}",),
                 effect=Verdict.DENY, origin=Origin.OVERRIDE, owner="tests"),
        )  # fmt: skip
        for workload in (WORKLOAD, FRONT):
            self.controller.push(snapshot(number, *rules, workload=workload), workload)

    @property
    def up_to_date(self) -> bool:
        """Whether both sidecars have said that they took the last policy."""
        taken = [max((ack.version for ack in watcher.acks), default=0) for watcher in self.controller.watchers]
        return taken.count(self.version) == 2

    def last_words(self) -> str:
        """What the sidecars said of connections that did not go well, and last."""
        flows = [flow for flow in self.controller.flows if flow.failed or flow.verdict is not Verdict.ALLOW]
        logs = (process.log.read_text().splitlines() for process in (self.front, self.cart))
        telling = ([line for line in log if " policy version " not in line][-40:] for log in logs)
        return "\n".join([*map(str, flows[-10:]), *itertools.chain(*telling)])

    @property
    def rotations(self) -> int:
        """Certificates that were signed, beside each sidecar's first."""
        return self.controller.signatures - 2

    @contextlib.asynccontextmanager
    async def nginx(self):
        """The web application."""
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        assert found is not None, "nginx is not installed, and this test needs it: run .ci/system-packages test"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {self.directory}/{kind};" for kind in kinds)
        config = self.directory / "nginx.conf"
        config.write_text(
            f"daemon off; pid {self.directory}/nginx.pid; error_log stderr warn;"
            "events { worker_connections 2048; }"
            f"http {{ access_log off; {places} default_type text/plain; keepalive_requests 1000;"
            f" server {{ listen 127.0.0.1:{self.applications[self.web]};"
            ' location /items/ { return 200 "$request_method $uri\\n"; } } }'
        )
        child = await asyncio.create_subprocess_exec(found, "-c", str(config), "-e", "stderr")
        try:
            await until(lambda: _listens(self.applications[self.web]), "nginx to listen")
            yield
        finally:
            child.terminate()
            await child.wait()


def _listens(port: int) -> bool:
    wanted = f"0100007F:{port:04X}"
    return any(
        line.split()[1] == wanted and line.split()[3] == "0A" for line in Path("/proc/net/tcp").read_text().splitlines()
    )


@pytest.fixture
async def shop(tmp_path):
    async with FakeController(LIFETIME) as controller:
        made = Shop(controller, tmp_path)
        made.push()
        server = await asyncio.start_server(echo, "127.0.0.1", made.applications[made.store])
        async with server, made.nginx(), made.front, made.cart:
            await asyncio.gather(made.front.ready(), made.cart.ready())
            yield made
        for process in (made.front, made.cart):
            said = process.log.read_text()
            assert "Traceback" not in said, said
            assert "a fault" not in said, said


def nothing_failed(shop: Shop, load: HttpLoad) -> None:
    assert set(load.outcomes) <= {"answered"}, f"{load.outcomes}\n{shop.last_words()}"


async def pushing(shop: Shop) -> None:
    while True:
        shop.push()
        await asyncio.sleep(1 / PUSH_RATE)


async def test_no_request_fails(shop):
    entrance, held = shop.entrances[shop.web], shop.entrances[shop.store]
    pushes = asyncio.ensure_future(pushing(shop))
    try:
        # Connections that nobody ends live through any number of snapshots and renewals.
        async with HttpLoad(entrance, RATE) as load, Held(held) as stream, Held(held, 1.0) as quiet:
            renewed, version = shop.rotations, shop.version
            await until(lambda: shop.rotations >= renewed + ROTATIONS / 2, "renewals", RENEWED)
            await until(lambda: shop.version >= version + PUSHES / 2, "snapshots", PUSHED)
        nothing_failed(shop, load)
        assert (stream.broken, quiet.broken) == ("", ""), shop.last_words()
        assert min(stream.answers, quiet.answers) > 1
        dismissals = load.answered // 1000  # nginx ends a connection after 1000 requests
        assert load.dismissed <= dismissals, "kept connections were not kept"

        # With restarts among them, those that began before one end in the process that they began in.
        async with HttpLoad(entrance, RATE, age=AGE, idle=IDLE) as restarted:
            for number in range(2 * RESTARTS):
                process = (shop.front, shop.cart)[number % 2]
                async with Held(held) as before:
                    restarting = asyncio.ensure_future(process.restart())
                    taken_over = number // 2 + 1
                    await until(lambda: process.log.read_text().count("has taken over") == taken_over, "takeover")  # noqa: B023  # at once
                    answers = before.answers
                    await until(lambda: before.broken or before.answers > answers + 1, "held")  # noqa: B023  # at once
                    assert before.broken == "", shop.last_words()
                assert await restarting == 0, process.log.read_text()
                await process.ready()
                nothing_failed(shop, restarted)
            await until(lambda: shop.rotations >= ROTATIONS, "renewals that are left", RENEWED)
            await until(lambda: shop.version >= PUSHES, "snapshots that are left", PUSHED)
            answered = restarted.answered
            await until(lambda: restarted.answered > answered + RATE / 2, "requests after all that")
        nothing_failed(shop, restarted)
    finally:
        pushes.cancel()
        await asyncio.gather(pushes, return_exceptions=True)
    shop.push()
    await until(lambda: shop.up_to_date, "the last snapshot")
    assert not any(watcher.nacks for watcher in shop.controller.watchers)
    print({"requests": load.answered + restarted.answered, "pushes": shop.version, "rotations": shop.rotations,
           "restarts of each side": RESTARTS})  # fmt: skip
    for process in (shop.front, shop.cart):
        assert await process.terminate() == 0
