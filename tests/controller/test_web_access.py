"""Who may use the web API, which names it is served under, and what every answer carries."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import aiohttp
import pytest

from controller.errors import ConfigError
from controller.web.access import Hosts, Role, Tokens
from controller.web.answers import CONTENT_SECURITY_POLICY
from controller.web.page import NOT_BUILT, Page, load
from tests.controller.running import running


class TestTokens:
    def test_they_are_made_once_for_their_owner_alone_and_held_as_hashes(self, tmp_path: Path) -> None:
        tokens = Tokens.open(tmp_path)
        for role in Role:
            path = tmp_path / f"{role}.token"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            text = path.read_text().strip()
            assert tokens.role(f"Bearer {text}") is role
            assert Tokens.open(tmp_path).role(f"bearer  {text}") is role
            assert text not in repr(vars(tokens))

    @pytest.mark.parametrize(
        "header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer wrong", "Bearer ä"]
    )
    def test_anything_else_opens_nothing(self, tmp_path: Path, header: str | None) -> None:
        assert Tokens.open(tmp_path).role(header) is None

    def test_a_token_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        Tokens.open(tmp_path)
        (tmp_path / "operator.token").chmod(0o640)
        with pytest.raises(ConfigError, match="can be read by others; chmod 600"):
            Tokens.open(tmp_path)

    def test_a_file_that_holds_no_token_or_is_a_link_is_refused(self, tmp_path: Path) -> None:
        Tokens.open(tmp_path)
        (tmp_path / "viewer.token").write_text("short")
        with pytest.raises(ConfigError, match="holds no token; delete it"):
            Tokens.open(tmp_path)
        (tmp_path / "viewer.token").unlink()
        os.symlink(tmp_path / "operator.token", tmp_path / "viewer.token")
        with pytest.raises(ConfigError, match="can not be read"):
            Tokens.open(tmp_path)

    def test_one_token_has_one_role(self, tmp_path: Path) -> None:
        Tokens.open(tmp_path)
        (tmp_path / "viewer.token").write_text((tmp_path / "operator.token").read_text())
        with pytest.raises(ConfigError, match="the same token"):
            Tokens.open(tmp_path)


class TestHosts:
    HOSTS = Hosts.of(["localhost", "127.0.0.1", "::1", "Mesh.example"])

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "[::1]:1", "[0:0::1]", "mesh.example."]
    )
    def test_ours_are_served_on_any_port(self, host: str) -> None:
        assert self.HOSTS.serves(host)

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "evil.example",
            "localhost.evil.example",
            "localhost:x",
            "[::1",
            "[::1]x",
            "127.0.0.1:80:80",
            "::1",
            ":80",
        ],
    )
    def test_others_are_not(self, host: str) -> None:
        assert not self.HOSTS.serves(host)

    def test_an_origin_is_the_very_host_and_port(self) -> None:
        assert self.HOSTS.same_origin("http://localhost:8080", "localhost:8080")
        assert self.HOSTS.same_origin("https://Mesh.example", "mesh.EXAMPLE")
        for origin in (
            "null", "http://localhost:8081", "http://evil.example", "ftp://localhost:8080", "http://x@localhost:8080",
            "http://localhost:8080/", "http://[::1", "",
        ):  # fmt: skip
            assert not self.HOSTS.same_origin(origin, "localhost:8080"), origin


async def error(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    body = (await response.json())["error"]
    assert body["message"]
    assert body["remedy"]
    return response.status, body["code"], body["field"]


async def test_nobody_looks_without_a_token_and_nobody_changes_anything_as_a_viewer(tmp_path: Path) -> None:
    async with running(tmp_path) as run, aiohttp.ClientSession(run.url) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {run.token()}"}):
            async with http.get("/api/v1/status", headers=headers) as response:
                assert await error(response) == (401, "unauthorised", "Authorization")
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert response.headers["Cache-Control"] == "no-store"
        viewer = {"Authorization": f"Bearer {run.token('viewer')}"}
        async with http.get("/api/v1/status", headers=viewer) as response:
            assert response.status == 200
        for method, path in (
            ("POST", "/overrides"), ("POST", "/modes"), ("POST", "/policy/approve"), ("POST", "/join-tokens"),
            ("DELETE", "/overrides/override/1?owner=a&reason=b"),
        ):  # fmt: skip
            async with http.request(method, f"/api/v1{path}", headers=viewer, json={}) as response:
                assert await error(response) == (403, "forbidden", "Authorization")
        # a path that there is not says no more to those who have no token
        async with http.get("/api/v1/nothing") as response:
            assert response.status == 401


async def test_probes_need_neither_token_nor_name(tmp_path: Path) -> None:
    async with running(tmp_path) as run, aiohttp.ClientSession(run.url) as http:
        for path, said in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
            async with http.get(path, headers={"Host": "10.1.2.3:8080"}) as response:
                assert (response.status, await response.text()) == (200, said)
                assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "foreign-host"),
        ({"Host": "localhost.evil.example:80"}, "foreign-host"),
        ({"Origin": "http://evil.example"}, "foreign-origin"),
        ({"Origin": "null"}, "foreign-origin"),
        ({"Origin": "http://localhost:1"}, "foreign-origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign-origin"),
        ({"Sec-Fetch-Site": "same-site"}, "foreign-origin"),
    ],
)
async def test_other_names_and_other_pages_are_refused_whatever_token_they_have(
    tmp_path: Path, headers: dict[str, str], code: str
) -> None:
    async with running(tmp_path) as run:
        async with run.http.get("/api/v1/status", headers=headers) as response:
            assert (await error(response))[:2] == (403, code)
        body = {"effect": "deny", "from": "shop/front", "to": "shop/cart", "port": 1, "owner": "a", "reason": "b"}
        async with run.http.post("/api/v1/overrides", headers=headers, json=body) as response:
            assert (await error(response))[:2] == (403, code)
        assert not run.controller.engine.view.overrides


async def test_our_own_page_and_a_configured_name_are_served(tmp_path: Path) -> None:
    async with running(tmp_path, web_hosts=("mesh.example",)) as run:
        host = run.url.removeprefix("http://")
        for headers in (
            {"Origin": run.url, "Sec-Fetch-Site": "same-origin"},
            {"Host": "mesh.example", "Origin": "https://mesh.example"},
            {"Host": host.replace("127.0.0.1", "localhost")},
        ):
            async with run.http.get("/api/v1/status", headers=headers) as response:
                assert response.status == 200


async def test_every_answer_carries_the_security_headers(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        for path in ("/", "/api/v1/status", "/api/v1/nothing", "/api/v1/graph?format=svg", "/missing"):
            async with run.http.get(path) as response:
                assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Server"] == "hedgerow"
        assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY
        assert "unsafe" not in CONTENT_SECURITY_POLICY


async def test_paths_and_methods_that_there_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        async with run.http.get("/api/v1/nothing") as response:
            assert (await error(response))[:2] == (404, "not-found")
        async with run.http.put("/api/v1/overrides", json={}) as response:
            assert (await error(response))[:2] == (405, "method-not-allowed")
            assert response.headers["Allow"] == "GET, POST"


class TestPage:
    @pytest.fixture
    def built(self, tmp_path: Path) -> Path:
        folder = tmp_path / "static"
        (folder / "assets").mkdir(parents=True)
        (folder / "index.html").write_text("<!doctype html>")
        (folder / "assets" / "index-D6khFcrT.js").write_text("export {}")
        (folder / ".built").write_text("")
        (folder / "secret").symlink_to("/etc/hostname")
        return folder

    def test_hashed_assets_never_change_and_the_rest_is_asked_for_again(self, built: Path) -> None:
        files = load(built)
        assert set(files) == {"/index.html", "/assets/index-D6khFcrT.js"}
        assert files["/assets/index-D6khFcrT.js"].caching == "public, max-age=31536000, immutable"
        assert files["/assets/index-D6khFcrT.js"].type.startswith("text/javascript")
        assert files["/index.html"].caching == "no-cache"

    async def test_only_what_was_built_is_served(self, built: Path) -> None:
        from aiohttp import web
        from aiohttp.test_utils import TestClient, TestServer

        app = web.Application()
        app.add_routes(Page(load(built)).routes())
        async with TestClient(TestServer(app)) as http:
            async with http.get("/") as response:
                assert (response.status, response.content_type) == (200, "text/html")
                tag = response.headers["ETag"]
            async with http.get("/", headers={"If-None-Match": tag}) as response:
                assert response.status == 304
            for path in ("/.built", "/secret", "/../access.py", "/%2e%2e/access.py", "/assets", "/assets/"):
                async with http.get(path) as response:
                    assert response.status == 404, path

    async def test_a_page_that_is_not_built_says_how_to_build_it(self, tmp_path: Path) -> None:
        from aiohttp import web
        from aiohttp.test_utils import TestClient, TestServer

        (tmp_path / "assets").mkdir()
        (tmp_path / "assets" / "left-over.js").write_text("x")
        app = web.Application()
        app.add_routes(Page(load(tmp_path)).routes())
        async with TestClient(TestServer(app)) as http, http.get("/") as response:
            assert (response.status, await response.text()) == (503, NOT_BUILT)
            assert "make setup" in NOT_BUILT
