"""The scene of an attack: a sidecar with an application, a bystander, and an attacker, each a process of its own.

The bystander asks all the time, and no request of its may fail. How long its answers take is written down; it is
judged only where rounds with and without the attack take turns, so that both meet the same moods of the machine, and
nothing is ever held against a clock.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certs.ca import CertificateAuthority
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Mode, PortRange, Rule, Selector, Snapshot, WorkloadRef
from graph.wire import codec
from tests.attacks.figures import ASKED, DESCRIPTORS, Found
from tests.attacks.program import Program
from tests.attacks.sending import PATIENCE
from tests.sidecar.dataplane.foreign import free_port
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN

CART, FRONT, EVIL = (WorkloadRef("shop", name) for name in ("cart", "front", "evil"))
#: The attacked machine's processes go before all others, where they may: what is judged is them, and not what else runs
#: beside the tests. Where it is measured the attacker's come last: they stand for other machines.
_OURS, _OTHERS, _LAST = -10, 15, 19
#: Ports of the sidecar, with what is behind them and which lane HTTP gets there.
PORTS = {
    "open": "rules by connection: HTTP/1 and HTTP/2 are observed",
    "judged": "rules by operation: HTTP/1 is enforced in the http lane, HTTP/2 inspected",
    "inspected": "everything is inspected",
    "sink": "as open, before an application that answers nothing",
}
_OPERATIONS = ("GET /*", "POST /ok")


class Scene:
    """A sidecar of shop/cart.

    :param measuring: it is judged how long the bystander waits
    :ivar application: the port of its application
    :ivar ports: where an attacker connects, by the names of :data:`PORTS`; those that begin with ``tunnelled`` are the
        same through the sidecar of shop/evil and a tunnel
    """

    def __init__(self, folder: Path, *, measuring: bool = True, **settings: Any) -> None:
        self._programs: list[Program] = []
        self.authority = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        self._folder = folder
        application = self._start("application")
        self.application, sink = map(int, application.hear().split())
        self.ports = {name: free_port() for name in PORTS}
        inbound = [[port, sink if name == "sink" else self.application] for name, port in self.ports.items()]
        self.cart = self._data_plane(CART, inbound, [], settings, _OURS)
        front = free_port()
        self._data_plane(FRONT, [], [[front, ["192.0.2.1", self.ports["open"]]]], {}, _OURS)
        through = {name: free_port() for name in self.ports}
        away = [[here, ["192.0.2.1", self.ports[name]]] for name, here in through.items()]
        self._data_plane(EVIL, [], away, {}, _OTHERS * measuring)
        #: Where the bystander asks: without a tunnel, through one of shop/front, and past the sidecar.
        self.asked = [self.ports["open"], front, self.application]
        self.ports |= {f"tunnelled {name}": here for name, here in through.items()}
        self._attacker = self._start("attacker", _LAST * measuring)
        self._attacker.hear()
        self._bystander = self._start("bystander", self.asked)
        self._bystander.hear()

    def _start(self, module: str, first: Any = None) -> Program:
        program = Program(module, self._folder / f"{len(self._programs)}-{module}.log", first)
        self._programs.append(program)
        return program

    def _data_plane(
        self, workload: WorkloadRef, inbound: list[Any], outbound: list[Any], settings: dict[str, Any], nice: int
    ) -> Program:
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        config = {
            "authority": self.authority.dump().decode(),
            "snapshot": base64.b64encode(codec.encode_snapshot(self._policy(workload))).decode(),
            "inbound": inbound,
            "inspected": [self.ports["inspected"]],
            "outbound": outbound,
            "directory": [
                base64.b64encode(
                    codec.destination_to_message(
                        Destination(
                            *destination,
                            workload=CART,
                            meshed=True,
                            endpoints=(Endpoint("127.0.0.1", destination[1], identity=identity),),
                        )
                    ).SerializeToString()
                ).decode()
                for _, destination in outbound
            ],
            "settings": settings,
            "nice": nice,
        }
        program = self._start("data_plane", config)
        program.hear()
        return program

    def _policy(self, workload: WorkloadRef) -> Snapshot:
        to = Selector.of(CART)
        sources = (Selector(cidr="127.0.0.0/8"), Selector("shop"))
        by_operation = {"judged": _OPERATIONS}
        rules = tuple(
            Rule(f"static/{number}-{name}", source, to, (PortRange.single(self.ports[name]),), operations=operations)
            for number, source in enumerate(sources)
            for name, operations in ((name, by_operation.get(name, ())) for name in PORTS)
        )
        return Snapshot(workload, TRUST_DOMAIN, 1, Mode.ENFORCE, Mode.ENFORCE, rules=rules)

    def state(self) -> dict[str, Any]:
        """Of the attacked sidecar."""
        self.cart.say(None)
        state: dict[str, Any] = json.loads(self.cart.hear())
        return state

    def answers(self) -> list[tuple[int, float, float, bool]]:
        """What the bystander was answered since it was asked last: port, when, in how many seconds, and whether."""
        self._bystander.say(None)
        answers: list[tuple[int, float, float, bool]] = json.loads(self._bystander.hear())
        return answers

    async def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 90.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while not condition(state := self.state()):
            assert time.monotonic() < end, f"still {state}: {self.cart.log}"
            await asyncio.sleep(0.02)
        return state

    async def quiet(self, descriptors: int = 1 << 20) -> dict[str, Any]:
        """The state when nobody but the bystander is there: over the two connections through the sidecar, which it
        keeps, no lane but theirs, and nothing held.

        :param descriptors: at most: connections to the application that are kept for the next request end by and by
        """
        return await self.until(
            lambda state: (
                state["live"] == state["open"] == state["watched"] == 2
                and state["inspected"] == state["buffered"] == state["holders"] == 0
                and state["descriptors"] <= descriptors
                and state["inbound"] <= 1 + len(PORTS)  # tunnels: of shop/front, and of shop/evil to each port
            )
        )

    def attack(self, name: str, port: int, seconds: float, **options: Any) -> dict[str, float]:
        self._attacker.say({"attack": name, "port": port, "seconds": seconds, **options})
        result: dict[str, float] = json.loads(self._attacker.hear())
        return result

    async def rounds(
        self, name: str, port: int, *, count: int, seconds: float, meets: tuple[str, ...] = (), **options: Any
    ) -> Found:
        """Attack ``count`` times, and before each time but where it is only once let the same time pass without.

        :param meets: limits, one of which the attack must meet: it goes on until it has. One that was cut off on a busy
            machine may have been so for another reason
        """
        began = await self.quiet()
        self.answers()
        found = Found(began)
        end = time.monotonic() + count * seconds + PATIENCE
        done = 0
        while done < count or (meets and not found.times(*meets) and time.monotonic() < end):
            done += 1
            if count > 1:
                await self.quiet()
                start = time.monotonic()
                await asyncio.sleep(seconds)
                found.quiet.append((start, time.monotonic()))
            self.state()  # forget the longest turn
            start = time.monotonic()
            result = await asyncio.to_thread(self.attack, name, port, seconds, **options)
            state = self.state()
            found.loud.append((start, result.pop("over", time.monotonic())))
            found.took_part(state, result)
            found.after = state
        found.after = await self.quiet(found.before["descriptors"] + DESCRIPTORS)
        answers = self.answers()
        while len(answers) <= ASKED:  # an attack that is cut at once leaves the bystander little time
            await asyncio.sleep(seconds)
            answers += self.answers()
        found.answers = [(port == self.application, *answer) for port, *answer in answers]
        return found

    def end(self) -> None:
        """End everything in order; a fault of any process is one of the test."""
        programs, self._programs = self._programs, []
        try:
            for program in reversed(programs):
                program.end()
                assert "Traceback" not in program.log, program.log
                assert "please report it" not in program.log, program.log
        finally:
            for program in programs:
                program.kill()
