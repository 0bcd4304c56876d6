"""The program as people run it: a process with a configuration file, signals, exit codes, and what it says."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from certs.ca import CertificateAuthority
from controller.__main__ import main
from controller.settings import Address, InheritedSocket, WebTls
from tests.controller.mesh import INVENTORY, TRUST_DOMAIN
from tests.controller.running import running

ROOT = Path(__file__).parents[2]


def configured(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    inventory = folder / "inventory.yaml"
    if not inventory.exists():
        inventory.write_text(INVENTORY)
    config = {
        "state_dir": "state",
        "inventory": "inventory.yaml",
        "trust_domain": TRUST_DOMAIN,
        "grpc_listen": "127.0.0.1:0",
        "issuer_listen": "127.0.0.1:0",
        "web_listen": "127.0.0.1:0",
        **changes,
    }
    path = folder / "controller.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Process:
    """``python -m controller``, listening for the web on a socket that it inherits."""

    def __init__(self, config: Path, flags: Sequence[str] = ()) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.state_dir = config.parent / "state"
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._argv = [sys.executable, "-m", "controller", "--config", str(config), *flags]

    async def __aenter__(self) -> Process:
        fd = self._socket.fileno()
        self.process = await asyncio.create_subprocess_exec(
            *self._argv, "--web-listen", f"fd:{fd}", pass_fds=[fd], cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        self._lines: list[str] = []
        self._reading = asyncio.create_task(self._read())
        await self.says("serving: ")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading
        self._socket.close()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self._lines.append(line.decode().rstrip())

    async def says(self, words: str) -> str:
        async with asyncio.timeout(60):
            while not (found := [line for line in self._lines if words in line]):
                assert not self._reading.done(), "\n".join(self._lines)
                await asyncio.sleep(0.02)
        return found[0]

    @asynccontextmanager
    async def http(self) -> AsyncIterator[aiohttp.ClientSession]:
        token = (self.state_dir / "operator.token").read_text().strip()
        async with aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {token}"}) as session:
            yield session

    async def get(self, path: str) -> Any:
        async with self.http() as http, http.get(f"/api/v1{path}") as response:
            assert response.status == 200, await response.text()
            return await response.json()


async def test_sigterm_ends_it_in_order_and_a_new_start_knows_everything(tmp_path: Path) -> None:
    config = configured(tmp_path)
    person = {"owner": "anna", "reason": "test"}
    async with Process(config) as process:
        async with process.http() as http:
            body = {
                "effect": "deny",
                "from": "shop/front",
                "to": "data/redis",
                "port": 6379,
                "expires_in": None,
                **person,
            }
            async with http.post("/api/v1/overrides", json=body) as response:
                made = (await response.json())["override"]
            async with http.post("/api/v1/modes", json={"namespace": "shop", "mode": "audit", **person}) as response:
                assert response.status == 200
        bundle = (process.state_dir / "trust-bundle.pem").read_text()
        before = await process.get("/status")
        process.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.process.wait() == 0
    async with Process(config) as process:
        assert [each["id"] for each in (await process.get("/overrides"))["overrides"]] == [made["id"]]
        after = await process.get("/status")
        assert [each["inbound_mode"] for each in after["workloads"] if each["workload"].startswith("shop/")] == [
            "audit"
        ] * 2
        assert after["audit_head"] == before["audit_head"]  # the same inventory is no change
        assert after["generation"] >= before["generation"]
        audit = await process.get("/audit")
        assert audit["intact"] is True
        assert "override.create" in [entry["action"] for entry in audit["entries"]]
        assert (process.state_dir / "trust-bundle.pem").read_text() == bundle


async def test_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with Process(config) as process:
        async with process.http() as http:
            body = {"effect": "deny", "from": "shop/front", "to": "data/redis", "port": 1, "owner": "a", "reason": "b"}
            async with http.post("/api/v1/overrides", json=body | {"expires_in": None}) as response:
                assert response.status == 201
        process.process.kill()
        await process.process.wait()
    async with Process(config) as process:
        assert len((await process.get("/overrides"))["overrides"]) == 1
        assert (await process.get("/audit"))["intact"] is True


async def test_a_new_inventory_is_taken_by_itself_and_a_wrong_one_is_refused_as_a_whole(tmp_path: Path) -> None:
    config = configured(tmp_path, inventory_interval=0.05)
    async with Process(config) as process:
        inventory = tmp_path / "inventory.yaml"
        inventory.write_text(INVENTORY.replace("front-0, workload: shop/front", "front-0, workload: shop/frnt"))
        said = await process.says("the inventory was not taken, the old one stays")
        assert "instances[0].workload" in said
        assert str(inventory) in said
        assert (await process.get("/status"))["inventory"]["instances"] == 5

        inventory.write_text("\n".join(line for line in INVENTORY.splitlines() if "cart-1" not in line))
        await process.says("inventory taken: 4 workloads")
        assert (await process.get("/status"))["inventory"]["instances"] == 4


async def test_sighup_reads_inventory_and_tokens_again(tmp_path: Path) -> None:
    config = configured(tmp_path, inventory_interval=3600)
    async with Process(config) as process:
        old = (process.state_dir / "operator.token").read_text().strip()
        (process.state_dir / "operator.token").unlink()
        (tmp_path / "inventory.yaml").write_text(
            "\n".join(line for line in INVENTORY.splitlines() if "cart-1" not in line)
        )
        process.process.send_signal(signal.SIGHUP)
        await process.says("inventory taken: ")
        assert (await process.get("/status"))["inventory"]["instances"] == 4  # with the new token
        async with (
            aiohttp.ClientSession(process.url, headers={"Authorization": f"Bearer {old}"}) as http,
            http.get("/api/v1/status") as response,
        ):
            assert response.status == 401


async def test_a_second_controller_on_the_same_state_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with Process(config) as process:
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controller", "--config", str(config), cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            _, said = await other.communicate()
        assert other.returncode == 2
        assert b"in use by another controller" in said
        assert b"Traceback" not in said
        assert (await process.get("/status"))["version"]


def said_and_code(capsys: pytest.CaptureFixture[str], config: Path, *flags: str) -> tuple[str, int]:
    """What the command prints and returns when it can not begin."""
    code = main(["--config", str(config), "--log-level", "error", *flags])
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert len(said.splitlines()) <= 2
    assert "; " in said, "a remedy is missing"
    return said, code


class TestRefusals:
    def test_configuration(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said, code = said_and_code(capsys, configured(tmp_path, svid_lifetime="soon"))
        assert (code, "svid_lifetime" in said) == (2, True)
        said, code = said_and_code(capsys, tmp_path / "none.yaml")
        assert (code, "--config" in said) == (2, True)
        said, code = said_and_code(capsys, configured(tmp_path), "--web-listen", "0.0.0.0:80")
        assert (code, "web_tls" in said) == (2, True)

    def test_inventory(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = configured(tmp_path)
        inventory = tmp_path / "inventory.yaml"
        inventory.write_text(INVENTORY.replace("address: 10.0.0.2", "address: 10.0.0.1"))
        said, code = said_and_code(capsys, config)
        assert (code, "instances[1].address" in said, str(inventory) in said) == (2, True, True)
        inventory.unlink()
        assert said_and_code(capsys, config)[1] == 2

    def test_database(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = configured(tmp_path)
        state = tmp_path / "state"
        state.mkdir(mode=0o700)
        database = state / "controller.db"
        database.write_bytes(b"not a database at all" * 100)
        said, code = said_and_code(capsys, config)
        assert (code, "controller.db" in said) == (2, True)
        assert database.read_bytes() == b"not a database at all" * 100
        database.unlink()
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA application_id = 1214539602")
            connection.execute("PRAGMA user_version = 9999")
            connection.execute("CREATE TABLE future (x)")
        connection.close()
        said, code = said_and_code(capsys, config)
        assert (code, "newer" in said) == (2, True)

    def test_state_directory(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = configured(tmp_path)
        state = tmp_path / "state"
        state.mkdir()
        state.chmod(0o777)
        said, code = said_and_code(capsys, config)
        assert (code, "chmod 700" in said) == (2, True)
        state.rmdir()
        state.write_text("a file")
        said, code = said_and_code(capsys, config)
        assert (code, said.startswith("error: state_dir: ")) == (2, True)

    @pytest.mark.parametrize("setting", ["grpc_listen", "issuer_listen", "web_listen"])
    def test_a_busy_port(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            address = f"127.0.0.1:{busy.getsockname()[1]}"
            said, code = said_and_code(capsys, configured(tmp_path, **{setting: address}))
        assert code == 1
        assert said == (
            f"error: {setting}: {address}: another program listens there; stop it, or set {setting} to another port"
        )
        # nothing is left behind that would keep a next start out
        said, code = said_and_code(capsys, configured(tmp_path, grpc_listen="192.0.2.1:1"))
        assert (code, "grpc_listen: 192.0.2.1:1: this machine has no such address" in said) == (1, True)

    def test_an_inherited_socket_that_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = configured(tmp_path)
        said, code = said_and_code(capsys, config, "--web-listen", "fd:999")
        assert (code, "no such descriptor" in said) == (2, True)
        with socket.socket() as idle:
            said, code = said_and_code(capsys, config, "--web-listen", f"fd:{idle.fileno()}")
            assert (code, "does not listen" in said) == (2, True)
        with socket.create_server(("0.0.0.0", 0)) as everywhere:
            said, code = said_and_code(capsys, config, "--web-listen", f"fd:{everywhere.fileno()}")
            assert (code, "not on a loopback address" in said) == (2, True)

    def test_flags_that_there_are_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--config", "x", "--verbose"])
        assert caught.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


async def test_https_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "1", "-subj", "/CN=mesh.example", "-addext", "subjectAltName=DNS:mesh.example,IP:127.0.0.1"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    context = ssl.create_default_context(cafile=folder / "cert.pem")
    tls = WebTls(folder / "cert.pem", folder / "key.pem")
    async with running(tmp_path, web_listen=Address("0.0.0.0", 0), web_tls=tls, web_hosts=("mesh.example",)) as run:
        port = int(run.url.rpartition(":")[2])
        assert run.url == f"https://0.0.0.0:{port}"
        async with run.http.get(f"https://127.0.0.1:{port}/api/v1/status", ssl=context) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            await run.http.get(f"http://127.0.0.1:{port}/api/v1/status")


async def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        async with running(tmp_path, web_listen=InheritedSocket(listening.fileno())) as run:
            headers = {"Authorization": f"Bearer {run.token()}"}
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), headers=headers) as http,
                http.get("http://localhost/api/v1/status") as response,
            ):
                assert response.status == 200


async def test_a_wrong_key_for_the_certificate_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = CertificateAuthority.create(TRUST_DOMAIN, 1_700_000_000)
    (tmp_path / "cert.pem").write_text(authority.bundle().to_pem())
    (tmp_path / "key.pem").write_text("no key")
    config = configured(tmp_path, web_tls={"certificate": "cert.pem", "key": "key.pem"})
    said, code = await asyncio.to_thread(said_and_code, capsys, config)
    assert (code, said.startswith("error: web_tls: ")) == (2, True)


async def test_two_in_one_process_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "a") as one, running(tmp_path / "b") as other:
        assert one.token() != other.token()
        assert one.bundle.roots_der != other.bundle.roots_der
