"""docs/api.md against the code: every call, every parameter of it, every field of what it speaks of, and nothing else.

The page is what people write their own clients from, so what it leaves out is a fault as much as what it makes up.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from controller.web import answers
from controller.web.tap import exchange_document
from graph.model import Verdict
from graph.tap import Message, Shown
from tests.controller.mesh import CART, FRONT, REDIS, flow, instance, used
from tests.controller.running import PERSON, Running, running

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")

type Call = tuple[str, str]


def described_calls() -> dict[Call, set[str]]:
    """What each call of the page takes, in its query string and in its body."""
    found: dict[Call, set[str]] = {}
    for line in PAGE.splitlines():
        said = re.match(r"\| `([A-Z]+) (/[^`?]*)(?:\?([^`]*))?`(?: `(\{.*?\})`)? \|", line)
        if said is not None:
            method, path, query, body = said.groups()
            assert (method, path) not in found, "twice"
            taken = {pair.partition("=")[0] for pair in (query or "").split("&") if pair}
            found[method, path] = taken | names(body or "{}")
    return found


def answer_of(method: str, path: str) -> str:
    """What a call answers, as it is written: from the first brace to the end of its code."""
    said = re.search(rf"^\| `{method} {re.escape(path)}[?`].*? \| [^|]*?`(\{{.*?\}})`", PAGE, re.MULTILINE)
    assert said is not None, f"docs/api.md does not say what {method} {path} answers"
    return said.group(1)


def part(written: str, name: str) -> str:
    """Of ``{a, b: [{c, d: {e}}]}`` and b: ``{c, d: {e}}``."""
    start = re.search(rf"\b{name}: \[?(?=\{{)", written)
    assert start is not None, f"docs/api.md does not say what {name} is"
    depth = 0
    for at in range(start.end(), len(written)):
        depth += (written[at] == "{") - (written[at] == "}")
        if depth == 0:
            return written[start.end() : at + 1]
    raise AssertionError(f"{name} never ends")


def described(thing: str) -> set[str]:
    """The fields of what the page calls **thing**."""
    said = re.search(rf"^\*\*{thing}\*\* `(\{{.*?\}})`", PAGE, re.MULTILINE)
    assert said is not None, f"docs/api.md does not describe {thing}"
    return names(said.group(1))


def names(written: str) -> set[str]:
    """Of ``{a, b = 1, c: [x, y], d \\| e, f \\| null}`` a to f: the names at its first level."""
    found, depth, name = set(), 0, ""
    for mark in f"{written[1:-1]},":
        depth += (mark in "[{(") - (mark in ")}]")
        if mark == "," and depth == 0:
            found |= {each.strip(" \\") for each in re.split("[:=]", name)[0].split("|")} - {"", "null"}
            name = ""
        else:
            name += mark
    return found


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{}", set()),
        ("{a}", {"a"}),
        (r"{a, b = 1, c: [x, {y}], d \| e, f \| null, g = \"r\": r \| s}", set("abcdefg")),
    ],
)
def test_names_are_read(written: str, expected: set[str]) -> None:
    assert names(written) == expected


def served_calls(run: Running) -> dict[Call, set[str]]:
    """What the controller serves, and what each handler takes from its request."""
    found = {}
    for route in run.controller.web_server._runner.app.router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if path.startswith(answers.API):
            taken = re.findall(r'fields\.take\(\s*"(\w+)"', inspect.getsource(route.handler))
            found[route.method, path.removeprefix(answers.API)] = set(taken)
    return found


async def test_every_call_is_there_with_all_that_it_takes_and_no_other(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        served = served_calls(run)
    described = described_calls()
    assert set(described) == set(served)
    for call, taken in served.items():
        assert described[call] == taken, call


async def test_every_answer_has_the_fields_that_it_says(tmp_path: Path) -> None:
    ends = {"from": "shop/front", "to": "shop/cart", "port": 8080}
    asked: dict[str, dict[str, object]] = {
        "/status": {},
        "/graph": {},
        "/flows": {},
        "/policy": {},
        "/policy/diff": {},
        "/overrides": {},
        "/why": ends,
        "/drift": {},
        "/audit": {},
        "/inventory": {},
    }
    override = {"effect": "allow", **ends, "expires_in": 60, **PERSON}
    token = {"workload": "shop/cart", "instance": "cart-0", "expires_in": 60}
    inner = [
        ("/status", "inventory"), ("/status", "sidecars"), ("/status", "workloads"), ("/status", "edges"),
        ("/policy/diff", "edges"), ("/audit", "entries"),
    ]  # fmt: skip
    async with running(tmp_path) as run:
        engine = run.controller.engine
        unproved = flow(FRONT, REDIS, 6379, verified=False, source_identity="")
        await engine.ingest(instance("redis-0"), "boot", 1, 0, [unproved])  # which waits for a person
        answered = {("GET", path): await run.get(path, **query) for path, query in asked.items()}
        answered["POST", "/policy/approve"] = await run.post("/policy/approve", {"edges": "all", **PERSON})
        answered["POST", "/overrides"] = made = await run.post("/overrides", override, 201)
        answered["POST", "/modes"] = await run.post("/modes", {"namespace": "shop", "mode": "audit", **PERSON})
        answered["POST", "/join-tokens"] = await run.post("/join-tokens", token, 201)
        async with run.http.delete(f"/api/v1/overrides/{made['override']['id']}", params=PERSON) as response:
            answered["DELETE", "/overrides/{id}"] = await response.json()
    for call, document in answered.items():
        assert set(document) == names(answer_of(*call)), call

    for path, name in inner:
        found = answered["GET", path][name]
        assert found, f"{name} of {path} is empty, so that nothing was compared"
        document = found[0] if isinstance(found, list) else found
        assert set(document) == names(part(answer_of("GET", path), name)), f"{name} of {path}"


async def test_everything_that_is_answered_has_the_fields_that_it_says(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        engine = run.controller.engine
        now = engine.view.at
        await used(engine, "boot", 1, first_seen=now, last_seen=now)
        asked = {"connections": 0, "bytes_sent": 0, "bytes_received": 0, "operation": "GET /cart/{id}", "requests": 7}
        await engine.ingest(instance("cart-0"), "asked", 1, 0, [flow(FRONT, CART, **asked)])
        wanted = {"effect": "deny", "from": "shop/front", "to": "data/redis", "port": None, "expires_in": None}
        made = await run.post("/overrides", {**wanted, **PERSON}, 201)
        graph, flows = await run.get("/graph"), (await run.get("/flows"))["flows"]
        (edge,) = (edge for edge in graph["edges"] if edge["operations"])
        found = {
            "node": graph["nodes"][0],
            "edge": edge,
            "operation": edge["operations"][0],
            "rule": edge["rule"],
            "flow": flows[0],
            "override": made["override"],
            "request": exchange_document("cart-0", _shown()),
        }
        for thing, document in found.items():
            assert set(document) == described(thing), thing
        message = re.search(r"a message is `(\{.*?\})`", PAGE)
        assert message is not None
        assert set(found["request"]["request"]) == names(message.group(1))


def _shown() -> Shown:
    ends = ("shop/front", "10.0.0.1", "shop/cart", 8080)
    what = ("GET /", "HTTP/1.1", "GET", "/", "cart", 200, -1)
    return Shown("t", 0.0, *ends, *what, Verdict.ALLOW, Verdict.ALLOW, "no-rule", "", 0.1, Message(), Message())
