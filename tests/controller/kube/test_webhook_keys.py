"""The injector's certificate through its life, without a cluster."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.kube.webhook_keys import BACKDATE, Held, Times, advance, make

HOST = "hedgerow-injector.hedgerow-system.svc"
DAY = 86400.0
TIMES = Times(lifetime=90 * DAY, settle=60, overlap=3600)
NOW = 1_800_000_000.0


def stored(held: Held, now: float, told: bytes = b"") -> Held:
    """What is read of it again."""
    return Held.read(held.data(), base64.b64encode(told).decode(), HOST, now)


def handshake(held: Held, folder: Path, bundle: bytes, host: str = HOST) -> None:
    """As an API server: raises ssl.SSLError when it does not believe the injector."""
    assert held.serving is not None
    files = folder / "c.pem", folder / "k.pem"
    files[0].write_bytes(held.serving.certificate)
    files[1].write_bytes(held.serving.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*files)
    client = ssl.create_default_context(cadata=bundle.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError), server.wrap_socket(theirs, server_side=True):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host):
            pass
    finally:
        ours.close()
        thread.join()
        theirs.close()


def test_an_api_server_believes_it_under_its_one_name(tmp_path: Path) -> None:
    import time

    held = advance(Held(), HOST, time.time(), TIMES, known=False)
    handshake(held, tmp_path, held.bundle())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(held, tmp_path, held.bundle(), "hedgerow-controller.hedgerow-system.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(held, tmp_path, make(HOST, time.time(), DAY).authority)


def test_the_authority_can_vouch_for_nothing_else_and_its_key_is_nowhere() -> None:
    pair = make(HOST, NOW, DAY)
    root = x509.load_pem_x509_certificate(pair.authority)
    limits = root.extensions.get_extension_for_class(x509.NameConstraints).value
    assert limits.permitted_subtrees == [x509.DNSName(HOST)]
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert pair.key.count(b"PRIVATE KEY") == 2
    assert "PRIVATE" not in repr(pair)
    from certs.keys import key_from_pem, public_bytes

    key = root.public_key()
    assert public_bytes(key_from_pem(pair.key).public_key()) != public_bytes(key)


def test_a_life_from_the_first_to_the_third_certificate() -> None:
    first = advance(Held(), HOST, NOW, TIMES, known=False)
    assert stored(first, NOW) == first
    assert first.serving is not None
    assert first.coming is None
    for later in (NOW + 1, NOW + 59 * DAY):
        assert advance(first, HOST, later, TIMES, known=True) == first

    due = NOW + 60 * DAY
    second = advance(first, HOST, due, TIMES, known=True)
    assert second.serving == first.serving
    assert second.coming is not None
    assert first.bundle() in second.bundle()
    assert second.coming.authority in second.bundle()
    assert stored(second, due) == second
    assert advance(second, HOST, due + 59, TIMES, known=True) == second, "API servers may not have heard of it yet"
    assert advance(second, HOST, due + DAY, TIMES, known=False) == second, "and have not been told"

    third = advance(second, HOST, due + 60, TIMES, known=True)
    assert third.serving == second.coming
    assert set(third.bundle().split(b"-----BEGIN")) == set(second.bundle().split(b"-----BEGIN"))
    assert stored(third, due + 60) == third
    assert advance(third, HOST, due + 3600, TIMES, known=True) == third, "injectors may not have read it yet"
    fourth = advance(third, HOST, due + 3661, TIMES, known=True)
    assert fourth.previous == b""
    assert fourth.bundle() == third.serving.authority


def test_without_one_that_can_be_used_the_next_is_taken_at_once() -> None:
    first = advance(Held(), HOST, NOW, TIMES, known=False)
    due = advance(first, HOST, NOW + 61 * DAY, TIMES, known=True)
    over = stored(due, NOW + 91 * DAY)
    assert over.serving is None
    assert over.coming == due.coming
    assert advance(over, HOST, NOW + 91 * DAY, TIMES, known=False).serving == due.coming
    gone = stored(due, NOW + 300 * DAY)
    assert gone == Held()
    fresh = advance(gone, HOST, NOW + 300 * DAY, TIMES, known=False)
    assert fresh.serving is not None
    assert fresh.serving.ends > NOW + 389 * DAY


def test_a_secret_that_was_lost_does_not_part_injectors_from_api_servers() -> None:
    first = advance(Held(), HOST, NOW, TIMES, known=False)
    lost = stored(Held(), NOW, told=first.bundle())
    fresh = advance(lost, HOST, NOW, TIMES, known=True)
    assert first.bundle() in fresh.bundle()
    assert fresh.serving != first.serving
    other = make("elsewhere.example", NOW, DAY)
    assert stored(Held(), NOW, told=other.authority) == Held(), "an authority that is none of ours"
    assert stored(Held(), NOW, told=b"no certificate") == Held()


def test_what_is_damaged_is_not_served() -> None:
    held = advance(Held(), HOST, NOW, TIMES, known=False)
    other = advance(Held(), HOST, NOW, TIMES, known=False).data()
    for name, value in (
        ("tls.crt", other["tls.crt"]),
        ("tls.key", other["tls.key"]),
        ("ca.crt", other["ca.crt"]),
        ("tls.key", "%%%"),
        ("tls.crt", base64.b64encode(b"x").decode()),
        ("ca.crt", ""),
        ("tls.key", "A" * 100_000),
    ):
        assert Held.read({**held.data(), name: value}, "", HOST, NOW).serving is None, name
    assert Held.read(held.data(), "", "another.hedgerow-system.svc", NOW).serving is None
    assert Held.read(held.data(), "", HOST, NOW - BACKDATE - 10).serving is None


@settings(max_examples=25)  # each makes many keys
@given(st.lists(st.tuples(st.floats(1, 20 * DAY), st.booleans()), max_size=30))
def test_whatever_comes_between_api_servers_know_whoever_is_served(steps: list[tuple[float, bool]]) -> None:
    """``told`` is what API servers know; a pair is served only when they have known it for the time to settle."""
    now, held, told, told_since = NOW, Held(), b"", NOW
    for wait, tell in steps:
        now += wait
        held = stored(held, now, told)
        before = held
        known = held.bundle() == told
        held = advance(held, HOST, now, TIMES, known=known)
        if before.serving is not None and held.serving != before.serving:
            assert held.serving is not None
            assert held.serving.authority in told
            assert now - told_since >= 0
            assert before.serving.authority in held.bundle(), "who still serves the one before is believed"
        if tell and held.bundle() != told:
            told, told_since = held.bundle(), now
    assert held.serving is None or held.serving.authority in held.bundle()
