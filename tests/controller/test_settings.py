"""controller.yaml is read strictly: what is not understood is refused, with field and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.errors import ConfigError
from controller.learner import Gate
from controller.settings import Address, InheritedSocket, Settings, WebTls
from controller.web.server import hosts_of

LEAST = {"state_dir": "state", "inventory": "inventory.yaml"}


def parse(**changes: Any) -> Settings:
    return Settings.parse({**LEAST, **changes}, Path("/etc/hedgerow"))


def refuse(**changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    return caught.value


def test_two_lines_are_enough_and_paths_are_relative_to_the_file() -> None:
    settings = parse()
    assert settings == Settings(Path("/etc/hedgerow/state"), Path("/etc/hedgerow/inventory.yaml"))
    assert settings.trust_domain == "hedgerow.local"
    assert (settings.grpc_listen.port, settings.issuer_listen.port, str(settings.web_listen)) == (
        15012, 15013, "127.0.0.1:8080",
    )  # fmt: skip
    assert settings.svid_lifetime == 3600


def test_everything_can_be_set() -> None:
    settings = parse(
        trust_domain="example.org",
        grpc_listen="[::]:1",
        issuer_listen="10.0.0.1:0",
        web_listen="fd:7",
        web_hosts=["Mesh.Example", "[::1]"],
        web_tls={"certificate": "web.pem", "key": "/keys/web.key"},
        svid_lifetime=60,
        inventory_interval=0.5,
        learning={"min_connections": 1, "min_seconds": 0, "quiet_seconds": 2.5, "stale_after": 60, "retire_after": 90},
        sse_clients=3,
        log_level="debug",
        state_dir="/var/lib/hedgerow",
    )
    assert settings.state_dir == Path("/var/lib/hedgerow")
    assert (settings.grpc_listen, settings.web_listen) == (Address("::", 1), InheritedSocket(7))
    assert settings.web_hosts == ("mesh.example", "::1")
    assert settings.web_tls == WebTls(Path("/etc/hedgerow/web.pem"), Path("/keys/web.key"))
    assert settings.learning == Gate(1, 0.0, 2.5, 60.0, 90.0)


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"state_dir": None}, "state_dir", "string"),
        ({"state_dir": ""}, "state_dir", "write something"),
        ({"inventroy": "x"}, "inventroy", "did you mean 'inventory'"),
        ({"trust_domain": "Example.org"}, "trust_domain", "lower-case"),
        ({"trust_domain": "a:b"}, "trust_domain", "lower-case"),
        ({"grpc_listen": "15012"}, "grpc_listen", "127.0.0.1:8080"),
        ({"grpc_listen": "localhost:1"}, "grpc_listen", "address"),
        ({"grpc_listen": "::1:15012"}, "grpc_listen", "brackets"),
        ({"grpc_listen": "0.0.0.0:65536"}, "grpc_listen", "127.0.0.1:8080"),
        ({"grpc_listen": "0.0.0.0:15013"}, "issuer_listen", "its own port"),
        ({"web_listen": "fd:x"}, "web_listen", "fd:3"),
        ({"web_listen": "0.0.0.0:8080"}, "web_listen", "web_tls"),
        ({"web_listen": "10.0.0.1:8080"}, "web_listen", "127.0.0.1"),
        ({"web_hosts": "mesh"}, "web_hosts", "list"),
        ({"web_hosts": ["http://mesh"]}, "web_hosts[0]", "without scheme"),
        ({"web_tls": {"certificate": "x"}}, "web_tls.key", "key"),
        ({"web_tls": {"certificate": "x", "key": "y", "ca": "z"}}, "web_tls.ca", "certificate, key"),
        ({"web_tls": "x"}, "web_tls", "by its name"),
        ({"svid_lifetime": 1}, "svid_lifetime", "from 2"),
        ({"svid_lifetime": "1h"}, "svid_lifetime", "seconds"),
        ({"svid_lifetime": float("nan")}, "svid_lifetime", "seconds"),
        ({"svid_lifetime": True}, "svid_lifetime", "seconds"),
        ({"learning": {"min_conections": 3}}, "learning.min_conections", "min_connections"),
        ({"learning": {"min_connections": 0}}, "learning.min_connections", "from 1"),
        ({"learning": {"stale_after": 90, "retire_after": 60}}, "learning.retire_after", "stale before"),
        ({"sse_clients": 1.5}, "sse_clients", "whole number"),
        ({"log_level": "trace"}, "log_level", "debug, info, warning, error"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(changes: dict[str, Any], field: str, remedy: str) -> None:
    error = refuse(**changes)
    assert error.field == field
    assert remedy in error.remedy


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_on_a_cluster_what_is_said_of_the_inventory_file_is_refused(interval: float) -> None:
    """Also where it is what holds by itself: it would be changed one day, to no effect."""
    with pytest.raises(ConfigError) as caught:
        Settings.parse({"state_dir": "s", "kubernetes": {}, "inventory_interval": interval}, Path("/etc"))
    assert caught.value.field == "inventory_interval"
    assert caught.value.remedy.startswith("remove it; kubernetes.coalesce says")
    with pytest.raises(ConfigError) as caught:
        Settings.parse({**LEAST, "kubernetes": {}}, Path("/etc"))
    assert (caught.value.field, caught.value.remedy) == ("inventory", "remove one of the two")


def test_memory_is_not_promised_back_to_whom_beginning_anew_would_cost_the_page() -> None:
    said = {"state_dir": "s", "web_listen": "fd:3"}
    with pytest.raises(ConfigError) as caught:
        Settings.parse({**said, "kubernetes": {"reclaim": 1 << 20}}, Path("/etc"))
    assert (caught.value.field, caught.value.remedy) == (
        "kubernetes.reclaim", "write 0 or remove it, or listen on an address",
    )  # fmt: skip
    for kubernetes in (None, {}, {"reclaim": 0}):
        assert Settings.parse({**said, "kubernetes": kubernetes}, Path("/etc")).web_listen == InheritedSocket(3)


def test_on_a_cluster_the_page_has_the_names_that_it_was_given() -> None:
    settings = Settings.parse({"state_dir": "s", "kubernetes": {}, "web_hosts": ["Mesh.Example"]}, Path("/etc"))
    served = hosts_of(settings)
    assert served.serves("mesh.example:8080")
    assert not served.serves("other.example:8080")


def test_off_loopback_the_page_is_served_with_tls_only() -> None:
    tls = {"certificate": "web.pem", "key": "web.key"}
    assert parse(web_listen="0.0.0.0:8443", web_tls=tls).web_tls is not None
    assert parse(web_listen="[::1]:8080").web_listen == Address("::1", 8080)


class TestFile:
    def write(self, tmp_path: Path, content: str | bytes) -> Path:
        path = tmp_path / "controller.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def test_a_file_is_read_and_flags_override_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.write(tmp_path, yaml.safe_dump({**LEAST, "log_level": "debug"}))
        assert Settings.load(path).state_dir == tmp_path / "state"
        monkeypatch.chdir("/")
        settings = Settings.load(path, {"state_dir": "elsewhere", "web_listen": "fd:3", "log_level": None})
        assert (settings.state_dir, settings.web_listen, settings.log_level) == (
            Path("/elsewhere"), InheritedSocket(3), "debug",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("state_dir: a\nstate_dir: b\n", "state_dir: written twice"),
            ("state_dir: [\n", "not YAML"),
            ("- a\n", "not a mapping"),
            ("", "not a mapping"),
            ("1: a\n", "is not text"),
            ("state_dir: !!python/object/apply:os.getcwd []\n", "not YAML"),
            (b"\xff\xfe\x00", "not YAML"),
            ("a: " + "x" * 300_000, "larger than"),
            ("a: &a [*a]\n", "not YAML"),
        ],
    )
    def test_a_file_that_is_none_of_ours(self, tmp_path: Path, content: str | bytes, said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Settings.load(self.write(tmp_path, content))
        assert said in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file or directory; name a readable file with --config"):
            Settings.load(tmp_path / "none.yaml")
