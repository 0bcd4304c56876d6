"""The client of the web API: where it looks for the controller, and what it says when that fails."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from aiohttp import web

from hedgerow.client import Access, ApiError, Client, ClientError, Refused, Unreachable

TOKEN = "a-token-that-must-not-be-shown"


async def serve(handler: object) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    return runner, f"http://127.0.0.1:{port}"


def test_arguments_win_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "theirs").write_text("theirs\n")
    environment = {
        "HEDGEROW_SERVER": "http://127.0.0.1:1",
        "HEDGEROW_TOKEN_FILE": str(tmp_path / "theirs"),
        "HEDGEROW_TOKEN": "loose",
    }
    assert Access.find("http://127.0.0.1:2/", tmp_path / "mine", environment) == Access("http://127.0.0.1:2", "mine")
    assert Access.find("", None, environment) == Access("http://127.0.0.1:1", "loose")
    del environment["HEDGEROW_TOKEN"]
    assert Access.find("", None, environment) == Access("http://127.0.0.1:1", "theirs")
    assert Access.find("", None, {}) == Access("http://127.0.0.1:8080", "")


def test_a_missing_token_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        Access.find("", tmp_path / "none", {})
    assert str(tmp_path / "none") in caught.value.message
    assert "operator.token" in caught.value.remedy


def test_a_token_is_never_shown() -> None:
    assert TOKEN not in repr(Access("http://127.0.0.1:1", TOKEN))


async def test_the_token_is_sent_and_an_error_body_becomes_an_exception() -> None:
    seen: list[str | None] = []

    async def refuse(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        body = {"code": "unknown-workload", "field": "to", "message": "no such workload", "remedy": "did you mean it?"}
        return web.json_response({"error": body}, status=404)

    runner, server = await serve(refuse)
    try:
        async with Client(Access(server, TOKEN)) as client:
            with pytest.raises(ApiError) as caught:
                await client.get("/why", {"to": "shop/none", "empty": None})
    finally:
        await runner.cleanup()
    assert seen == [f"Bearer {TOKEN}"]
    assert caught.value.problem.status == 404
    assert caught.value.message == "to: no such workload"
    assert caught.value.remedy == "did you mean it?"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_is_told_apart(status: int) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(
            {"error": {"code": "x", "message": "no", "field": None, "remedy": None}}, status=status
        )

    runner, server = await serve(refuse)
    try:
        async with Client(Access(server)) as client:
            with pytest.raises(Refused) as caught:
                await client.get("/status")
    finally:
        await runner.cleanup()
    assert "HEDGEROW_TOKEN_FILE" in caught.value.remedy


async def test_something_else_at_the_address_is_said_to_be_no_controller() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    async def broken(_: web.Request) -> web.Response:
        return web.Response(text="oops", status=500)

    for handler in (page, broken):
        runner, server = await serve(handler)
        try:
            async with Client(Access(server)) as client:
                with pytest.raises(ClientError) as caught:
                    await client.get("/status")
        finally:
            await runner.cleanup()
        assert server in caught.value.message
        assert "--server" in caught.value.remedy


async def test_nothing_at_the_address() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with Client(Access(server)) as client:
            with pytest.raises(Unreachable) as caught:
                await client.get("/status")
            with pytest.raises(Unreachable):
                async for _ in client.events("/graph/live"):
                    pass
    assert server in caught.value.message


async def test_events_are_read_whole_however_they_are_cut() -> None:
    text = 'event: graph\ndata: {"a":\ndata: 1}\n\n: still here\n\nevent: delta\r\ndata: {"b": "ü"}\r\n\r\ndata: 3\n\n'

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for byte in text.encode():
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        return response

    runner, server = await serve(stream)
    try:
        async with Client(Access(server)) as client:
            events = [event async for event in client.events("/graph/live")]
    finally:
        await runner.cleanup()
    assert events == [("graph", {"a": 1}), ("delta", {"b": "ü"}), ("message", 3)]


def test_use_outside_its_block_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError):
        asyncio.run(Client(Access("http://127.0.0.1:1")).get("/status"))
