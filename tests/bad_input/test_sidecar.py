"""The sidecar, started with something wrong or without a good certificate, beside a controller that serves."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.x509 import load_pem_x509_certificate

from certs.ca import CertificateAuthority
from tests.bad_input.sidecars import Sidecar, echo_service, join_token
from tests.bad_input.starts import Case, check, contents, start
from tests.controller.mesh import TRUST_DOMAIN
from tests.hedgerow.served import Ended, Served, from_outside, served, until

_NEW_TOKEN = "hedgerow join-token create"


def written(name: str, data: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(data)


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


GUESSED = f"hedgerow-join.{'a' * 16}.{'b' * 43}"
#: Cases run side by side: none may want a port that others want, too.
REDIRECT = {
    "capture": "redirect",
    "explicit": None,
    "uid": 0,
    "admin_listen": "127.0.0.1:0",
    "stats_listen": "127.0.0.1:0",
}

CASES = [
    # configuration
    Case("a misspelt setting", ["sidecar.yaml: unsycned: unknown", "'unsynced'"], settings={"unsycned": "deny"}),
    Case("no such word", ["unsynced: 'dney'", "deny, learn"], settings={"unsynced": "dney"}),
    Case("a missing setting", ["instance: missing", "add"], settings={"instance": None}),
    Case("no address", ["addresses[0]: 'cart' is not an IP address"], settings={"addresses": ["cart"]}),
    Case("no controller", ["controller: 'x' is not host:port"], settings={"controller": "x"}),
    Case("nothing to do", ["explicit: missing", "explicit.inbound"], settings={"explicit": None}),
    Case("not YAML", ["sidecar.yaml: ", "not YAML"], spoil=written("sidecar.yaml", "a: [1")),
    # trust
    Case("no bundle", ["trust_bundle", "No such file", "copy"], spoil=gone("trust-bundle.pem")),
    Case("no roots", ["trust_bundle", "not a PEM text"], spoil=written("trust-bundle.pem", "x")),
    Case("another domain", ["trust_bundle", "'other.test'"], settings={"trust_domain": "other.test"}),
    # join tokens
    Case("no token", ["join_token_file", "is not there", _NEW_TOKEN], 1, spoil=gone("join-token")),
    Case("an empty token", ["join_token_file", "does not hold a join token"], 1, spoil=written("join-token", "")),
    Case("no token of ours", ["join_token_file", "not one of", _NEW_TOKEN], 1, spoil=written("join-token", "psst")),
    Case("a guessed token", ["join_token_file", "not one of"], 1, spoil=written("join-token", GUESSED)),
    # state
    Case("a file for a directory", ["state_dir", "directory"], 1, spoil=written("state", "precious")),
    # ports
    Case("busy readiness", ["ready_listen: cannot listen", "already in use", "stop"], busy="ready_listen"),
    Case("busy entrance", ["explicit.inbound[0].listen: cannot listen", "already in use"], busy="explicit.inbound"),
    Case("busy exit", ["explicit.outbound[0].listen: cannot listen", "already in use"], busy="explicit.outbound"),
    Case("busy capture", ["outbound_listen: cannot listen", "already"], settings=REDIRECT, busy="outbound_listen"),
    Case("busy capture, inbound", ["inbound_listen: cannot listen"], settings=REDIRECT, busy="inbound_listen"),
]


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("controller")) as running:
        yield running


def busy(where: str, address: str) -> dict[str, Any]:
    """Settings that want an address which is taken."""
    if where == "explicit.inbound":
        return {"explicit": {"inbound": [{"listen": address, "application": "127.0.0.1:9"}]}}
    if where == "explicit.outbound":
        return {"explicit": {"outbound": [{"listen": address, "destination": "10.0.0.9:80"}]}}
    others = {"outbound_listen": "127.0.0.1:0", "inbound_listen": "127.0.0.1:0"} if where != "ready_listen" else {}
    return {**others, where: address}


@dataclass
class Outcome:
    ended: Ended
    sidecar: Sidecar
    before: dict[str, str]
    token: str


@pytest.fixture(scope="module")
def outcomes(
    controller: Served, two_at_a_time: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    base = tmp_path_factory.mktemp("cases")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        def run(number: int, case: Case, token: str) -> Outcome:
            settings = {**case.settings, **(busy(case.busy, address) if case.busy else {})}
            sidecar = Sidecar(controller, base / str(number), token=token, **settings)
            case.spoil(sidecar.folder)
            before = contents(sidecar.folder)
            return Outcome(start("sidecar", sidecar.config), sidecar, before, token)

        tokens = [join_token(controller, expires_in=600) for _ in CASES]  # the last is used when the others were
        yield {
            case.name: two_at_a_time.submit(run, number, case, token)
            for number, (case, token) in enumerate(zip(CASES, tokens, strict=True))
        }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_named_and_costs_nothing(case: Case, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[case.name].result()
    check(case, outcome.ended)
    assert outcome.token not in outcome.ended.err
    after = contents(outcome.sidecar.folder)
    if case.busy and case.busy != "ready_listen":  # it had its certificate by then, which it keeps
        assert (outcome.sidecar.state_dir / "svid.pem").exists()
    else:
        assert after == outcome.before


def test_with_the_port_free_the_certificate_that_was_kept_is_used(
    controller: Served, outcomes: dict[str, Future[Outcome]]
) -> None:
    sidecar = outcomes["busy entrance"].result().sidecar
    kept = (sidecar.state_dir / "svid.pem").read_bytes()
    text = sidecar.config.read_text()
    taken = text.partition("listen: 127.0.0.1:")[2].partition("\n")[0]
    sidecar.config.write_text(text.replace(f"127.0.0.1:{taken}", f"{sidecar.address}:{sidecar.entrance}"))
    with sidecar.running():
        assert (sidecar.state_dir / "svid.pem").read_bytes() == kept


def test_a_token_works_once(controller: Served, tmp_path: Path) -> None:
    token = join_token(controller)
    with Sidecar(controller, tmp_path / "first", token=token).running():
        second = Sidecar(controller, tmp_path / "second", token=token)
        before = contents(second.folder)
        ended = start("sidecar", second.config)
    check(Case("reused", ["join_token_file", "was used before", _NEW_TOKEN, "quarantine"], 1), ended)
    assert contents(second.folder) == before
    assert token not in ended.err


def test_a_token_works_for_a_while(controller: Served, tmp_path: Path) -> None:
    made = controller.call("POST", "/join-tokens", {"workload": "shop/cart", "instance": "cart-0", "expires_in": 1})
    until(lambda: time.time() > made["expires_at"] + 0.1, "its expiry")
    sidecar = Sidecar(controller, tmp_path / "late", token=made["token"])
    before = contents(sidecar.folder)
    ended = start("sidecar", sidecar.config)
    check(Case("expired", ["join_token_file", "expired", _NEW_TOKEN], 1), ended)
    assert contents(sidecar.folder) == before


def test_a_token_works_for_its_instance(controller: Served, tmp_path: Path) -> None:
    sidecar = Sidecar(controller, tmp_path / "other", token=join_token(controller, "cart-1"))
    ended = start("sidecar", sidecar.config)
    check(Case("of another", ["'cart-1'", "'cart-0'", "instance:", _NEW_TOKEN], 1), ended)
    assert not (sidecar.state_dir / "svid.pem").exists()


def test_a_state_directory_belongs_to_one_instance(controller: Served, tmp_path: Path) -> None:
    first = Sidecar(controller, tmp_path / "first")
    with first.running():
        pass
    other = Sidecar(controller, tmp_path / "other", instance="cart-1", state_dir=str(first.state_dir))
    before = contents(first.folder)
    check(
        Case("foreign", ["state_dir", "'cart-0'", "'cart-1'", "its own directory"], 1), start("sidecar", other.config)
    )
    assert contents(first.folder) == before


def test_another_instance_on_the_state_directory_of_one_that_runs_is_refused(
    controller: Served, tmp_path: Path
) -> None:
    """The same instance would take over from it."""
    first = Sidecar(controller, tmp_path / "first")
    with first.running():
        other = Sidecar(controller, tmp_path / "other", instance="cart-1", state_dir=str(first.state_dir))
        before = contents(first.state_dir)
        check(Case("second", [str(first.state_dir), "in use"], 1), start("sidecar", other.config))
        assert contents(first.state_dir) == before
        assert first.readiness()[0] == 200


def test_an_issuer_that_is_not_trusted_is_told_from_one_that_is_away(controller: Served, tmp_path: Path) -> None:
    """Neither ends it: both may pass. It says which it is, and the token is not spent on a stranger."""
    stranger = CertificateAuthority.create(TRUST_DOMAIN, time.time()).bundle().to_pem()
    for words, settings in (
        ("not trusted: check trust_bundle", {}),
        ("nothing listens there: check the controller's address", {"issuer": "127.0.0.1:1"}),
    ):
        sidecar = Sidecar(controller, tmp_path / words.partition(":")[0].replace(" ", "-"), **settings)
        if not settings:
            (sidecar.folder / "trust-bundle.pem").write_text(stranger)
        with sidecar.started():
            until(lambda: words in sidecar.readiness()[1], words)  # noqa: B023  # called before the next turn
        said = sidecar.log.read_text()
        assert words in said
        assert all(" WARNING sidecar." in line for line in said.splitlines()), said  # nothing of gRPC's own
        assert (sidecar.folder / "join-token").exists()


#: A certificate is good for the whole of the second that it ends in (RFC 5280 section 4.1.2.5).
LAST_SECOND = 1.0


def not_after(sidecar: Sidecar) -> float:
    return load_pem_x509_certificate((sidecar.state_dir / "svid.pem").read_bytes()).not_valid_after_utc.timestamp()


def test_an_expired_certificate_is_not_used_and_a_new_token_mends_it(tmp_path: Path) -> None:
    with served(tmp_path / "controller", svid_lifetime=2) as controller, echo_service() as application:
        sidecar = Sidecar(controller, tmp_path / "sidecar")
        sidecar.serve(application)
        with sidecar.running():
            assert sidecar.ask() == b"hello"
        until(lambda: time.time() >= not_after(sidecar) + LAST_SECOND, "the certificate's end")
        before = contents(sidecar.folder)
        ended = start("sidecar", sidecar.config)
        words = ["the stored certificate is not used", "expired", "join_token_file", _NEW_TOKEN]
        assert ended.code == 1
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        for word in words:
            assert word in last
        assert contents(sidecar.folder) == before
        (sidecar.folder / "join-token").write_text(join_token(controller))
        with sidecar.running():
            assert sidecar.ask() == b"hello"


def test_the_controller_takes_nothing_from_an_expired_certificate(tmp_path: Path) -> None:
    with served(tmp_path, svid_lifetime=2) as controller:
        front = controller.join("shop/front", "front-0")
        front.report(from_outside())
        before = controller.get("/graph")["edges"]
        until(lambda: time.time() >= front.not_after + LAST_SECOND, "the certificate's end")
        for _ in range(2):  # on the open connection, and on one of its own
            with pytest.raises(grpc.RpcError) as caught:
                front.report(from_outside())
            assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
            front.reconnect()
        assert controller.get("/graph")["edges"] == before
        controller.join("shop/front", "front-0").report(from_outside())
        assert controller.get("/graph")["edges"] != before
        assert "Traceback" not in controller.log.read_text()
