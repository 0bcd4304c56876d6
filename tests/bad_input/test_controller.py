"""The controller, started with something wrong: it says what and how to mend it, ends, and has touched nothing."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.starts import WITHOUT_PRIVILEGE, Case, check, contents, start
from tests.controller.mesh import INVENTORY
from tests.hedgerow.served import Ended, Served, configured, hedgerow, populate, served

DATABASE = "state/controller.db"


def written(name: str, text: str) -> Callable[[Path], object]:
    """At once, as a deployment does it: a controller that runs may look at any moment."""

    def write(folder: Path) -> None:
        path = folder / name
        path.with_name("new").write_text(text)
        path.with_name("new").replace(path)

    return write


def inventory(old: str, new: str) -> Callable[[Path], object]:
    assert old in INVENTORY
    return written("inventory.yaml", INVENTORY.replace(old, new))


def mode(name: str, bits: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).chmod(bits)


def of_another_program(folder: Path) -> None:
    (folder / DATABASE).unlink()
    queried("CREATE TABLE accounts (name TEXT)")(folder)


def a_directory(folder: Path) -> None:
    (folder / DATABASE).unlink()
    (folder / DATABASE).mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    (folder / "state").write_text("precious")


def damaged(folder: Path) -> None:
    data = bytearray((folder / DATABASE).read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    (folder / DATABASE).write_bytes(data)


def cut_short(folder: Path) -> None:
    (folder / DATABASE).write_bytes((folder / DATABASE).read_bytes()[:6000])


def queried(statement: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        connection = sqlite3.connect(folder / DATABASE)
        with connection:
            connection.execute(statement)
        connection.close()

    return spoil


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


CASES = [
    # configuration
    Case("no file", ["controller.yaml", "No such file", "--config"], spoil=gone("controller.yaml")),
    Case("not YAML", ["controller.yaml", "not YAML (line", "correct"], spoil=written("controller.yaml", "a: [1")),
    Case("not a mapping", ["controller.yaml", "a list is not a mapping"], spoil=written("controller.yaml", "- 1")),
    Case("a misspelt setting", ["svid_liftime: unknown", "svid_lifetime"], settings={"svid_liftime": 3600}),
    Case("text for a number", ["svid_lifetime: 'soon'", "seconds from 2"], settings={"svid_lifetime": "soon"}),
    Case("a missing setting", ["state_dir: missing", "add"], settings={"state_dir": None}),
    Case("no such trust domain", ["trust_domain", "lower-case"], settings={"trust_domain": "Bad Domain"}),
    Case("tokens in clear", ["web_listen: 0.0.0.0:8080", "web_tls"], settings={"web_listen": "0.0.0.0:8080"}),
    Case("no port", ["grpc_listen: '127.0.0.1:99999'"], settings={"grpc_listen": "127.0.0.1:99999"}),
    Case("a nested one", ["learning.min_conections: unknown"], settings={"learning": {"min_conections": 1}}),
    Case(
        "another trust domain",
        ["trust_domain: 'other.test'", "hedgerow.test", "restore the setting"],
        settings={"trust_domain": "other.test"},
    ),
    Case("no certificate", ["web_tls.certificate", "PEM"], settings={"web_tls": {"certificate": "a", "key": "b"}}),
    # inventory
    Case("no inventory", ["inventory.yaml can not be read", "set `inventory`"], spoil=gone("inventory.yaml")),
    Case("inventory not YAML", ["inventory.yaml: not YAML (line 2"], spoil=written("inventory.yaml", "a: [\n")),
    Case("another kind", ["inventory.yaml: kind: 'Pod'", "kind: Inv"], spoil=inventory("kind: Inventory", "kind: Pod")),
    Case(
        "a misspelt key",
        ["inventory.yaml: workloads[0].serviceAcount: unknown", "did you mean 'serviceAccount'"],
        spoil=inventory("serviceAccount: front", "serviceAcount: front"),
    ),
    Case(
        "an unknown workload",
        ["inventory.yaml: instances[0].workload: there is no workload shop/frnt", "shop/front"],
        spoil=inventory("front-0, workload: shop/front", "front-0, workload: shop/frnt"),
    ),
    Case(
        "an address twice",
        ["inventory.yaml: instances[1].address: 10.0.0.1 is also", "belongs to one"],
        spoil=inventory("10.0.0.2", "10.0.0.1"),
    ),
    Case(
        "no such port",
        ["inventory.yaml: services[0].ports[0].targetPort", "'htp'"],
        spoil=inventory("targetPort: http", "targetPort: htp"),
    ),
    # database
    Case("no database", ["controller.db is not a database", "backup"], spoil=written(DATABASE, "no database " * 100)),
    Case("a newer database", ["controller.db: ", "9999", "newer"], spoil=queried("PRAGMA user_version = 9999")),
    Case("somebody's database", ["controller.db belongs to another program", "state_dir"], spoil=of_another_program),
    Case("a directory", ["controller.db is not a regular file", "state_dir"], spoil=a_directory),
    Case("a damaged database", ["controller.db", "backup"], spoil=damaged),
    Case("half a database", ["controller.db", "backup"], spoil=cut_short),
    Case(
        "a row of nobody's",
        ["the table overrides has a damaged row 'override/", "checksum", "backup"],
        spoil=queried("UPDATE overrides SET effect = 'perhaps'"),
    ),
    Case(
        "an unreadable database",
        ["controller.db", "Permission denied", "state_dir"],
        spoil=mode(DATABASE, 0o000),
        prefix=WITHOUT_PRIVILEGE,
    ),
    # the state directory
    Case("a file for a directory", ["state_dir", "is no directory"], spoil=a_file),
    Case("everybody's directory", ["state_dir", "chmod 700"], spoil=mode("state", 0o777)),
    Case(
        "a read-only directory",
        ["state_dir", "not ours to write"],
        spoil=mode("state", 0o500),
        prefix=WITHOUT_PRIVILEGE,
    ),
    Case("everybody's token", ["operator.token", "chmod 600"], spoil=mode("state/operator.token", 0o644)),
    Case("no authority", ["authority.pem", "nothing was changed"], spoil=written("state/ca/authority.pem", "x")),
    # ports
    Case("busy gRPC", ["grpc_listen", "another program listens there", "another port"], 1, busy="grpc_listen"),
    Case("busy issuer", ["issuer_listen", "another program listens there", "another port"], 1, busy="issuer_listen"),
    Case("busy web", ["web_listen", "another program listens there", "another port"], 1, busy="web_listen"),
    Case("no such address", ["grpc_listen: 192.0.2.1:1", "no such"], 1, settings={"grpc_listen": "192.0.2.1:1"}),
]


@dataclass
class Outcome:
    ended: Ended
    folder: Path
    before: dict[str, str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A controller's folder after work: what is in it, and what it knew."""
    folder = tmp_path_factory.mktemp("kept") / "controller"
    folder.mkdir()
    with served(folder) as controller:
        populate(controller)
        asked = {"effect": "deny", "from": "shop/front", "to": "data/redis", "port": 1, "expires_in": None}
        controller.call("POST", "/overrides", {**asked, "owner": "anna", "reason": "a test"})
        known = what_it_knows(controller)
    return folder, known


def what_it_knows(controller: Served) -> dict[str, Any]:
    """Rules, overrides, edges and the head of the audit log."""
    return {
        "rules": controller.get("/policy")["rules"],
        "overrides": controller.get("/overrides")["overrides"],
        "edges": controller.get("/graph")["edges"],
        "audit": (controller.get("/status")["audit_head"], controller.get("/audit")["intact"]),
    }


@pytest.fixture(scope="module")
def outcomes(
    kept: tuple[Path, dict[str, Any]], two_at_a_time: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """Every case on a copy of its own."""
    base = tmp_path_factory.mktemp("cases")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        def run(number: int, case: Case) -> Outcome:
            folder = base / str(number)
            shutil.copytree(kept[0], folder)
            settings = {**case.settings, **({case.busy: address} if case.busy else {})}
            config = configured(folder, **settings)
            case.spoil(folder)
            before = contents(folder)
            return Outcome(start("controller", config, case.prefix), folder, before)

        yield {case.name: two_at_a_time.submit(run, number, case) for number, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_named_and_nothing_is_touched(case: Case, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[case.name].result()
    check(case, outcome.ended)
    assert contents(outcome.folder) == outcome.before


@pytest.mark.parametrize("name", ["an unknown workload", "busy web"])
def test_with_the_mistake_mended_everything_is_there(
    name: str, outcomes: dict[str, Future[Outcome]], kept: tuple[Path, dict[str, Any]]
) -> None:
    outcome = outcomes[name].result()
    (outcome.folder / "inventory.yaml").write_text(INVENTORY)
    with served(outcome.folder) as controller:
        assert json.dumps(what_it_knows(controller)) == json.dumps(kept[1])


def test_a_second_controller_on_the_same_state_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with served(tmp_path) as controller:
        second = start("controller", tmp_path / "controller.yaml")
        check(Case("second", ["controller.db is in use by another controller", str(controller.process.pid)]), second)
        assert controller.get("/status")["version"]


BAD_INVENTORIES = [
    ("instances[0].workload: there is no workload shop/frnt", inventory("workload: shop/front", "workload: shop/frnt")),
    ("workloads[2].ports[0].port: 99999", inventory("port: 6379", "port: 99999")),
    ("not YAML (line", written("inventory.yaml", "apiVersion: [")),
    ("kind: 'List'", inventory("kind: Inventory", "kind: List")),
    ("can not be read: No such file", gone("inventory.yaml")),
]


def test_a_bad_inventory_while_it_runs_is_refused_as_a_whole_and_the_old_one_stays(tmp_path: Path) -> None:
    with served(tmp_path) as controller:
        populate(controller)
        before = (controller.get("/inventory"), controller.get("/policy")["rules"])
        for words, spoil in BAD_INVENTORIES:
            begins = controller.log.stat().st_size
            spoil(tmp_path)
            said = controller.says("the inventory was not taken, the old one stays: ", begins)
            assert words in said
            assert str(tmp_path / "inventory.yaml") in said
            assert "; " in said  # the remedy
            assert (controller.get("/inventory"), controller.get("/policy")["rules"]) == before
            status = hedgerow("status", env=controller.access)
            assert "sidecars: 3 known" in status.out  # and its people are served
        begins = controller.log.stat().st_size
        written("inventory.yaml", "\n".join(x for x in INVENTORY.splitlines() if "legacy" not in x))(tmp_path)
        assert "3 workloads" in controller.says("inventory taken: ", begins)
        assert "Traceback" not in controller.log.read_text()
