"""Server-sent events: first the whole, then what changes, bounded in time and in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from controller.overrides import OverrideRequest
from controller.web.live import event
from graph.model import Direction, Mode, Protocol, Verdict
from tests.controller.mesh import CART, FRONT, INVENTORY, REDIS, flow, instance
from tests.controller.running import EDGE, Running, running


class Events:
    """A reader of one stream, by the HTML standard."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def next(self) -> tuple[str, Any]:
        name, data = "message", []
        async with asyncio.timeout(20):
            async for raw in self.response.content:
                line = raw.decode().rstrip("\n")
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data.append(line[6:])
                elif not line and data:
                    return name, json.loads("\n".join(data))
        return "end", None

    async def until(self, name: str, **having: Any) -> Any:
        """The next event of a kind of which everything in ``having`` is true."""
        while True:
            found, document = await self.next()
            assert found != "end", f"no {name} came"
            if found == name and all(document.get(key) == value for key, value in having.items()):
                return document


@asynccontextmanager
async def live(run: Running, path: str, **query: str) -> AsyncIterator[Events]:
    async with run.http.get(f"/api/v1{path}", params=query) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        yield Events(response)


async def use(run: Running, sequence: int, **changes: Any) -> None:
    now = run.controller.engine.view.at
    seen = flow(FRONT, CART, **{"first_seen": now, "last_seen": now, **changes})
    await run.controller.engine.ingest(instance("cart-0"), "boot-t", sequence, 0, [seen])


async def test_the_graph_comes_first_and_then_what_changed_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run, live(run, "/graph/live") as events:
        name, graph = await events.next()
        assert (name, len(graph["nodes"]), graph["edges"]) == ("graph", 4, [])

        await use(run, 1)
        delta = await events.until("delta")
        assert [edge["id"] for edge in delta["edges"]] == [EDGE]
        assert delta["edges"][0]["connections"] == 5
        assert set(delta) == {"generation", "at", "nodes", "edges", "removed_nodes", "removed_edges"}
        assert delta["generation"] > graph["generation"]
        assert {node["id"] for node in delta["nodes"]} <= {"shop/front", "shop/cart"}

        # two changes at once are one delta, of only what changed, with what is true at its end
        await asyncio.gather(use(run, 2), use(run, 3))
        delta = await events.until("delta")
        while delta["edges"][0]["connections"] < 15:
            delta = await events.until("delta")
        assert [edge["id"] for edge in delta["edges"]] == [EDGE]

        await run.controller.engine.set_mode(CART, Direction.INBOUND, Mode.ENFORCE, None, "anna", "test")
        delta = await events.until("delta")
        assert [(node["id"], node["inbound_mode"]) for node in delta["nodes"]] == [("shop/cart", "enforce")]

        override = await run.controller.engine.create_override(
            OverrideRequest(Verdict.DENY, FRONT, CART, 8080, Protocol.TCP, "anna", "test", 3600)
        )
        delta = await events.until("delta")
        assert [(edge["id"], edge["rule"]["id"]) for edge in delta["edges"]] == [(EDGE, override.id)]


async def test_a_new_inventory_is_the_whole_graph_again(tmp_path: Path) -> None:
    async with running(tmp_path) as run, live(run, "/graph/live") as events:
        await events.next()
        lines = [line for line in INVENTORY.splitlines() if "legacy" not in line]
        run.settings.inventory.write_text("\n".join(lines))
        graph = await events.until("graph")
        assert [node["id"] for node in graph["nodes"]] == ["data/redis", "shop/cart", "shop/front"]


async def test_flows_as_they_come_and_only_those_that_were_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as run, live(run, "/flows/live", workload="shop/cart", verdict="deny") as events:
        await use(run, 1)
        now = run.controller.engine.view.at
        other = flow(FRONT, REDIS, 6379, verdict=Verdict.DENY, reason="no-rule", first_seen=now, last_seen=now)
        await run.controller.engine.ingest(instance("redis-0"), "boot-t", 1, 0, [other])
        await use(run, 2, verdict=Verdict.DENY, reason="no-rule", connections=7)
        name, found = await events.next()
        assert (name, found["destination"], found["verdict"], found["connections"]) == ("flow", "shop/cart", "deny", 7)


async def test_flows_of_a_namespace_as_they_come(tmp_path: Path) -> None:
    async with running(tmp_path) as run, live(run, "/flows/live", namespace="data") as events:
        await use(run, 1)
        now = run.controller.engine.view.at
        theirs = flow(FRONT, REDIS, 6379, verdict=Verdict.DENY, reason="no-rule", first_seen=now, last_seen=now)
        await run.controller.engine.ingest(instance("redis-0"), "boot-t", 1, 0, [theirs])
        name, found = await events.next()
        assert (name, found["destination"]) == ("flow", "data/redis")


async def test_a_reader_that_missed_something_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as run, live(run, "/flows/live") as flows, live(run, "/graph/live") as graph:
        await graph.next()
        for subscription in run.controller.engine._worker._subscriptions:
            subscription._limit = 0  # as if its queue were full
        await use(run, 1)
        assert (await flows.next())[0] == "missed"
        name, whole = await graph.next()
        assert (name, [edge["id"] for edge in whole["edges"]]) == ("graph", [EDGE])


async def test_streams_are_bounded_and_given_back(tmp_path: Path) -> None:
    async with running(tmp_path, sse_clients=1) as run:
        async with live(run, "/graph/live") as events:
            await events.next()
            async with run.http.get("/api/v1/flows/live") as response:
                assert response.status == 503
                assert "live streams" in (await response.json())["error"]["message"]
            assert (await run.get("/status"))["generation"] > 0
        async with asyncio.timeout(20):
            while True:  # the server notices that the reader is gone when it next writes
                await use(run, run.controller.engine.view.generation)
                async with run.http.get("/api/v1/flows/live") as response:
                    if response.status == 200:
                        break


async def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        response = await run.http.get("/api/v1/graph/live")
        events = Events(response)
        await events.next()
        run.controller.stop()
        assert (await events.next())[0] == "end"
        response.close()


async def test_a_quiet_stream_says_that_it_is_still_there() -> None:
    from controller.engine import Subscription
    from controller.web.live import KEEP_ALIVE, Live

    class Quiet:
        """An engine in which nothing happens."""

        from controller.view import View

        view = View("hedgerow.test", started_at=1.0)

    stream = Live(Quiet(), lambda: 1.0, 1, comment_seconds=0.01)  # all that a stream asks of it
    changes = Subscription(8, lambda _: None)
    events = stream._graph_events(changes)
    assert (await anext(events)).startswith(b"event: graph\n")
    assert await anext(events) == KEEP_ALIVE
    assert await anext(events) == KEEP_ALIVE
    await events.aclose()


def test_an_event_is_one_document_over_lines_of_bounded_length() -> None:
    document = {"generation": 7, "nodes": [{"id": "a\nb"}, {"id": "c"}], "edges": [], "at": 1.5}
    lines = event("graph", document).decode().split("\n")
    assert lines[0] == "event: graph"
    assert lines[-2:] == ["", ""]
    assert all(line.startswith("data: ") for line in lines[1:-2])
    assert json.loads("\n".join(line[6:] for line in lines[1:-2])) == document
    assert max(len(line) for line in lines) < 40
    assert event("missed", {}) == b"event: missed\ndata: {}\n\n"
