"""The webhook as a server: TLS whose certificate changes, bounds, health, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controller.injection.app import Injector
from controller.injection.program_settings import InjectorSettings
from controller.injection.webhook_configuration import PATHS
from graph.fields import Address
from tests.controller.injection.certificates import HOST, self_signed, write
from tests.controller.injection.pods import pod
from tests.controller.injection.test_review import review

JSON = {"Content-Type": "application/json"}


def settings(folder: Path, **given: Any) -> InjectorSettings:
    document = {
        "listen": "127.0.0.1:0",
        "health_listen": "127.0.0.1:0",
        "certificate": "current/tls.crt",
        "key": "current/tls.key",
        "certificate_interval": 0.05,
        "drain_seconds": 0,
        "injection": {"image": "registry.example/hedgerow-sidecar:1.0"},
        **given,
    }
    return InjectorSettings.parse(document, folder)


@contextlib.asynccontextmanager
async def running(chosen: InjectorSettings) -> AsyncIterator[Injector]:
    injector, started = Injector(chosen), asyncio.Event()
    task = asyncio.create_task(injector.run(started.set))
    waiting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield injector
    finally:
        waiting.cancel()
        injector.stop()
        injector.stop()
        await task


def trusting(certificate: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificate.decode())


async def post(
    session: aiohttp.ClientSession, injector: Injector, body: Any, tls: ssl.SSLContext, **given: Any
) -> tuple[int, str]:
    assert injector.address is not None
    url = f"https://127.0.0.1:{injector.address.port}{given.pop('path', '/inject')}"
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    async with session.post(url, data=data, headers=given.pop("headers", JSON), ssl=tls, **given) as response:
        return response.status, await response.text()


async def look(session: aiohttp.ClientSession, injector: Injector, path: str) -> tuple[int, str]:
    assert injector.health_address is not None
    async with session.get(f"http://{injector.health_address}{path}") as response:
        return response.status, await response.text()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what is waited for is the program's own look at its files
            await asyncio.sleep(0.01)


async def test_pods_are_injected_over_tls_and_counted(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as session:
        tls = trusting(certificate)
        for path in PATHS:
            status, text = await post(session, injector, review(pod()), tls, path=path, server_hostname=HOST)
            assert status == 200
            assert json.loads(text)["response"]["allowed"] is (path == "/inject")
        assert await look(session, injector, "/healthz") == (200, "ok\n")
        assert await look(session, injector, "/readyz") == (200, "ready\n")
        _, page = await look(session, injector, "/metrics")
        assert 'hedgerow_injector_reviews_total{outcome="injected",dry_run="false"} 1' in page
        assert 'hedgerow_injector_reviews_total{outcome="refused",dry_run="false"} 2' in page
        assert "hedgerow_injector_review_seconds_count 3" in page


async def test_the_metrics_page_is_one_that_prometheus_reads(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as session:
        await post(session, injector, b"no", trusting(certificate))
        _, page = await look(session, injector, "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(page)}
    (rejected,) = families["hedgerow_injector_rejected"].samples
    assert (rejected.labels, rejected.value) == ({"reason": "bad-review"}, 1.0)
    buckets = [sample for sample in families["hedgerow_injector_review_seconds"].samples if "le" in sample.labels]
    assert buckets[-1].labels["le"] == "+Inf"
    assert [bucket.value for bucket in buckets] == sorted(bucket.value for bucket in buckets)


async def test_what_is_no_review_is_turned_away(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path, body_bytes=65536)) as injector, aiohttp.ClientSession() as session:
        tls = trusting(certificate)
        assert (await post(session, injector, b"{}", tls))[0] == 400
        assert (await post(session, injector, b"{}", tls, headers={"Content-Type": "text/plain"}))[0] == 415
        assert (await post(session, injector, b"x" * 70_000, tls))[0] == 413
        assert (await post(session, injector, b"{}", tls, path="/other"))[0] == 404
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        assert "hedgerow_injector_buffered_bytes 0" in (await look(session, injector, "/metrics"))[1]


async def test_slow_senders_do_not_last(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    released = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await released.wait()

    async with running(settings(tmp_path, deadline=2)) as injector, aiohttp.ClientSession() as session:
        tls = trusting(certificate)
        assert (await post(session, injector, slowly(), tls))[0] == 408
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        released.set()


async def test_what_many_send_at_once_is_bounded(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    released = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x" * (3 << 18)
        await released.wait()

    async def held() -> bool:
        return f"hedgerow_injector_buffered_bytes {3 << 18}\n" in (await look(session, injector, "/metrics"))[1]

    bounds = settings(tmp_path, deadline=30, body_bytes=1 << 20, buffered_bytes=1 << 20)
    async with running(bounds) as injector, aiohttp.ClientSession() as session:
        tls = trusting(certificate)
        first = asyncio.create_task(post(session, injector, slowly(), tls))
        async with asyncio.timeout(30):
            while not await held():  # noqa: ASYNC110  # what is waited for is the program's own count
                await asyncio.sleep(0.01)
        assert (await post(session, injector, b"x" * (1 << 19), tls))[0] == 503
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        released.set()
        assert (await first)[0] == 400
        assert (await post(session, injector, b"x" * (1 << 19), tls))[0] == 400


async def test_who_takes_every_connection_and_says_nothing_makes_room(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path, connections=3)) as injector, aiohttp.ClientSession() as session:
        assert injector.address is not None
        tls = trusting(certificate)
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        port = injector.address.port
        silent = [await asyncio.open_connection("127.0.0.1", port, ssl=tls) for _ in range(20)]
        async with aiohttp.ClientSession() as server:  # an API server that comes now
            assert (await post(server, injector, review(pod()), tls))[0] == 200
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        async with asyncio.timeout(60):
            for reader, _ in silent[:-3]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b"", "those that were there first are ended first"
        for _, writer in silent:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
                await writer.wait_closed()


async def test_who_takes_every_connection_and_begins_no_handshake_makes_room(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path, connections=4)) as injector, aiohttp.ClientSession() as session:
        assert injector.address is not None
        assert injector.handshakes is not None
        tls = trusting(certificate)
        silent = [await asyncio.open_connection("127.0.0.1", injector.address.port) for _ in range(50)]
        async with asyncio.timeout(60):
            for reader, _ in silent[:-4]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b"", "those that were there first are ended first"
        assert len(injector.handshakes) <= 4
        assert (await post(session, injector, review(pod()), tls))[0] == 200
        for _, writer in silent:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await until(lambda: not len(injector.handshakes or ()))


async def test_what_is_no_handshake_is_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as session:
        assert injector.address is not None
        port = injector.address.port
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 5000, b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 60)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await until(lambda: not len(injector.handshakes or ()))
        assert (await post(session, injector, review(pod()), trusting(certificate)))[0] == 200
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


async def test_a_new_certificate_is_served_without_dropping_anybody(tmp_path: Path) -> None:
    first, second = self_signed(), self_signed()
    write(tmp_path, *first)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as old, aiohttp.ClientSession() as new:
        assert (await post(old, injector, review(pod()), trusting(first[0])))[0] == 200
        write(tmp_path, *second)
        await until(lambda: injector.certificate.loaded == 2)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(new, injector, review(pod()), trusting(first[0]))
        assert (await post(new, injector, review(pod()), trusting(second[0])))[0] == 200


async def test_an_open_connection_goes_on_under_the_certificate_before(tmp_path: Path) -> None:
    first, second = self_signed(), self_signed()
    write(tmp_path, *first)
    async with running(settings(tmp_path)) as injector:
        assert injector.address is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", injector.address.port, ssl=trusting(first[0]))
        body = review(pod())
        head = (
            f"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        for round_ in range(2):
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            length = int(
                next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:"))[15:]
            )
            await reader.readexactly(length)
            if not round_:
                write(tmp_path, *second)
                await until(lambda: injector.certificate.loaded == 2)
        writer.close()


async def test_clients_that_name_no_server_get_the_certificate_of_that_moment_too(tmp_path: Path) -> None:
    first, second = self_signed(), self_signed()
    write(tmp_path, *first)
    async with running(settings(tmp_path)) as injector:
        assert injector.address is not None
        write(tmp_path, *second)
        await until(lambda: injector.certificate.loaded == 2)
        tls = trusting(second[0])
        tls.check_hostname = False
        _, writer = await asyncio.open_connection("127.0.0.1", injector.address.port, ssl=tls, server_hostname="")
        assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
            second[0].decode()
        )
        writer.close()


@pytest.mark.parametrize("damage", ["nothing", "no-key", "other-key", "garbage", "expired"])
async def test_it_is_not_ready_without_a_certificate_that_holds_and_becomes_so_by_itself(
    tmp_path: Path, damage: str
) -> None:
    good, other = self_signed(), self_signed(until=-10, since=-100)
    match damage:
        case "no-key":
            write(tmp_path, good[0], b"")
        case "other-key":
            write(tmp_path, good[0], other[1])
        case "garbage":
            write(tmp_path, b"\x00\xff", b"-----BEGIN PRIVATE KEY-----")
        case "expired":
            write(tmp_path, *other)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as session:
        assert (await look(session, injector, "/readyz"))[0] == 503
        assert (await look(session, injector, "/healthz"))[0] == 200
        if damage != "expired":
            with pytest.raises(aiohttp.ClientError):
                await post(session, injector, review(pod()), trusting(good[0]))
        write(tmp_path, *good)
        await until(lambda: injector.ready)
        assert (await post(session, injector, review(pod()), trusting(good[0])))[0] == 200


async def test_a_damaged_certificate_leaves_the_one_before_in_use(tmp_path: Path) -> None:
    good = self_signed()
    write(tmp_path, *good)
    async with running(settings(tmp_path)) as injector, aiohttp.ClientSession() as session:
        write(tmp_path, self_signed()[0], good[1])
        await until(lambda: injector.certificate.failed)
        assert (await post(session, injector, review(pod()), trusting(good[0])))[0] == 200


async def test_old_protocols_are_refused(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    async with running(settings(tmp_path)) as injector:
        assert injector.address is not None
        tls = trusting(certificate)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", injector.address.port, ssl=tls)


async def test_the_end_is_announced_and_what_comes_meanwhile_is_answered(tmp_path: Path) -> None:
    certificate, key = self_signed()
    write(tmp_path, certificate, key)
    injector, started = Injector(settings(tmp_path, drain_seconds=60)), asyncio.Event()
    task = asyncio.create_task(injector.run(started.set))
    await started.wait()
    async with aiohttp.ClientSession() as session:
        injector.stop()
        assert await look(session, injector, "/readyz") == (503, "stopping\n")
        assert injector.address is not None
        url = f"https://127.0.0.1:{injector.address.port}/inject"
        async with session.post(url, data=review(pod()), headers=JSON, ssl=trusting(certificate)) as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"
        assert not task.done()
        injector.stop()
        async with asyncio.timeout(20):
            await task


def test_the_program_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    config = tmp_path / "injector.yaml"

    def run(text: str) -> tuple[int, str]:
        config.write_text(text)
        command = [sys.executable, "-m", "controller.injection", "--config", str(config)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stderr

    code, said = run("certificate: a\nkey: b\ninjection: {image: x, imge: y}\n")
    assert code == 2
    assert said.startswith("error: injection.imge: unknown setting; did you mean 'image'?")
    assert run("certificate: a\nkey: b\n")[1].startswith("error: injection: missing")
    code, said = run("certificate: a\nkey: b\nlisten: 192.0.2.1:8443\ninjection: {image: x}\n")
    assert code == 2
    assert "error: listen: 192.0.2.1:8443 can not be listened on" in said


def test_the_program_ends_in_order(tmp_path: Path) -> None:
    write(tmp_path, *self_signed())
    config = tmp_path / "injector.yaml"
    config.write_text(
        "certificate: current/tls.crt\nkey: current/tls.key\nlisten: 127.0.0.1:0\nhealth_listen: 127.0.0.1:0\n"
        "drain_seconds: 0\ninjection: {image: x}\n"
    )
    command = [sys.executable, "-m", "controller.injection", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "answering API servers" in line:
                break
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_the_program_loads_nothing_of_the_engine() -> None:
    code = "import sys, controller.injection.app, controller.injection.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert not {"controller.engine", "controller.store", "sqlalchemy", "networkx", "grpc", "kubernetes"} & loaded


def test_listeners_must_differ(tmp_path: Path) -> None:
    from controller.errors import ConfigError

    with pytest.raises(ConfigError, match="taken by listen"):
        settings(tmp_path, listen="127.0.0.1:9443", health_listen="127.0.0.1:9443")
    assert settings(tmp_path, listen="[::1]:9443").listen == Address("::1", 9443)
