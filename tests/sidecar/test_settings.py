"""Settings are read strictly: every mistake is named, with what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.capture_settings import Capture, Explicit, InboundListener, OutboundListener, Udp
from sidecar.dns.settings import Dns
from sidecar.errors import ConfigError
from sidecar.settings import Address, Settings, Unsynced

LEAST = {
    "instance": "cart-1",
    "controller": "10.0.0.1:15012",
    "issuer": "controller.example:15013",
    "trust_domain": "hedgerow.local",
    "trust_bundle": "/etc/hedgerow/trust-bundle.pem",
    "state_dir": "/var/lib/hedgerow",
    "addresses": ["10.0.0.7"],
}


def test_the_least_settings_get_the_safe_defaults():
    settings = Settings.parse(LEAST)
    assert settings.controller == Address("10.0.0.1", 15012)
    assert settings.issuer == Address("controller.example", 15013)
    assert settings.capture is Capture.REDIRECT
    assert settings.unsynced is Unsynced.DENY
    assert (settings.uid, settings.mark) == (1337, None)
    assert str(settings.outbound_listen) == "127.0.0.1:15001"
    assert str(settings.inbound_listen) == "0.0.0.0:15006"
    assert str(settings.ready_listen) == "0.0.0.0:15021"
    assert settings.report_interval == 1.0
    assert settings.join_token_file is None
    assert (settings.mtls_ports, settings.mtls_alpn) == (frozenset(), ("istio",))
    assert Settings.parse(LEAST | {"mtls_alpn": []}).mtls_alpn == ()


def test_everything_can_be_set():
    explicit = {
        "outbound": [{"listen": "127.0.0.1:9001", "destination": "10.96.0.1:80"}],
        "inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:8080"}],
    }
    document = LEAST | {
        "join_token_file": "/run/token",
        "uid": 1000,
        "mark": 7,
        "unsynced": "learn",
        "outbound_listen": "127.0.0.1:25001",
        "inbound_listen": "[::]:25006",
        "ready_listen": "127.0.0.1:25021",
        "exclude_cidrs": ["169.254.0.0/16", "fd00::/8"],
        "report_interval": 0.25,
        "drain_seconds": 30,
        "mtls_ports": [443, 8443],
        "mtls_alpn": ["istio", "x"],
        "log_level": "debug",
    }
    settings = Settings.parse(document)
    assert Settings.parse(LEAST | {"capture": "explicit", "explicit": explicit}).explicit == Explicit(
        (OutboundListener(Address("127.0.0.1", 9001), Address("10.96.0.1", 80)),),
        (InboundListener(Address("10.0.0.7", 80), Address("127.0.0.1", 8080)),),
    )
    assert settings.unsynced is Unsynced.LEARN
    assert str(settings.inbound_listen) == "[::]:25006"
    assert settings.exclude_cidrs == ("169.254.0.0/16", "fd00::/8")
    assert (settings.mark, settings.drain_seconds) == (7, 30.0)
    assert (settings.mtls_ports, settings.mtls_alpn) == ({443, 8443}, ("istio", "x"))


def test_addresses_may_be_text_as_the_downward_api_gives_it():
    assert Settings.parse(LEAST | {"addresses": "10.0.0.7,fd00::7"}).addresses == ("10.0.0.7", "fd00::7")


def test_what_a_pod_sets():
    token = "/var/run/secrets/hedgerow/token/token"
    document = {"service_account_token_file": token, "hold_seconds": 5, "exit_with_application": True}
    settings = Settings.parse(LEAST | document)
    assert settings.service_account_token_file == Path(token)
    assert (settings.hold_seconds, settings.exit_with_application) == (5.0, True)
    least = Settings.parse(LEAST)
    assert (least.hold_seconds, least.exit_with_application) == (0.0, False)
    with pytest.raises(ConfigError, match=r"^join_token_file: set beside service_account_token_file; remove one"):
        Settings.parse(LEAST | document | {"join_token_file": "/run/token"})
    inbound = {"inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:8080"}]}
    for untold in ({"mark": 7}, {"capture": "explicit", "explicit": inbound}):
        with pytest.raises(ConfigError, match=r"^exit_with_application: .*; write false"):
            Settings.parse(LEAST | document | untold)


@pytest.mark.parametrize("field", sorted(LEAST))
def test_a_missing_field_is_named(field):
    document = {name: value for name, value in LEAST.items() if name != field}
    with pytest.raises(ConfigError, match=f"^{field}: missing; add the setting '{field}'"):
        Settings.parse(document)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("unsynced", "dney", "one of: deny, learn"),
        ("unsynced", None, "one of: deny, learn"),
        ("capture", "tproxy", "one of: redirect, explicit"),
        ("instance", "Cart 1", "lower-case"),
        ("instance", "../x", "lower-case"),
        ("instance", 7, "not text"),
        ("controller", "10.0.0.1", "host:port"),
        ("controller", "10.0.0.1:99999", "host:port"),
        ("controller", "10.0.0.1:0", "port 0"),
        ("controller", "::1:15012", "brackets"),
        ("controller", "a b:1", "not a host"),
        ("controller", ":15012", "not a host"),
        ("trust_domain", "Hedgerow.Local", "trust domain"),
        ("trust_bundle", "", "empty; write something"),
        ("state_dir", "a\0b", "control characters"),
        ("addresses", [], "empty; write a list of 1 to"),
        ("addresses", 7, "not a list"),
        ("addresses", "", r"addresses\[0\]: empty"),
        ("addresses", "10.0.0.7,", r"addresses\[1\]: empty"),
        ("addresses", "10.0.0.7 fd00::7", r"addresses\[0\].*not an IP address"),
        ("addresses", ["10.0.0.7/24"], r"addresses\[0\].*not an IP address"),
        ("addresses", ["localhost"], r"addresses\[0\]"),
        ("uid", "1337", "whole number"),
        ("uid", True, "whole number"),
        ("uid", -1, "whole number"),
        ("uid", 2**32 - 1, "whole number"),
        ("mark", 0, "whole number"),
        ("outbound_listen", "localhost:15001", "not an IP address"),
        ("exclude_cidrs", ["10.0.0.1/8"], "host bits"),
        ("report_interval", 0, "seconds from"),
        ("report_interval", float("nan"), "seconds from"),
        ("report_interval", float("inf"), "seconds from"),
        ("drain_seconds", -1, "seconds from"),
        ("hold_seconds", 3601, "seconds from"),
        ("exit_with_application", "yes", "write true or false"),
        ("service_account_token_file", "", "empty; write something"),
        ("log_level", "trace", "one of: debug"),
        ("mtls_ports", 443, "not a list"),
        ("mtls_ports", [0], r"mtls_ports\[0\].*whole number"),
        ("mtls_alpn", ["h2", "is tio"], r"mtls_alpn\[1\].*visible ASCII"),
        ("mtls_alpn", ["hedgerow/1"], "hedgerow/1, our own"),
        ("mtls_alpn", [f"x{number}" for number in range(17)], "at most 16 protocols"),
        ("explicit", [], "not a mapping"),
        ("explicit", {"outbond": []}, r"explicit\.outbond: unknown setting; did you mean 'outbound'"),
        ("explicit", {"outbound": [{"listen": "127.0.0.1:1"}]}, r"explicit\.outbound\[0\]\.destination: missing"),
        (
            "explicit",
            {"inbound": [{"listen": "127.0.0.1:1", "application": "127.0.0.1:0"}]},
            r"explicit\.inbound\[0\]\.application: port 0",
        ),
        ("explicit", {"outbound": [7]}, r"explicit\.outbound\[0\].*not a mapping"),
        ("unsnced", "deny", "unknown setting; did you mean 'unsynced'"),
    ],
)
def test_a_wrong_value_is_named_with_the_remedy(field, value, says):
    with pytest.raises(ConfigError, match=says) as error:
        Settings.parse(LEAST | {field: value})
    assert str(error.value).startswith(field)


@pytest.mark.parametrize("document", [None, [], "text", 7])
def test_what_is_no_mapping_is_refused(document):
    with pytest.raises(ConfigError, match="not a mapping"):
        Settings.parse(document)


def test_capture_and_declared_ports_must_agree():
    with pytest.raises(ConfigError, match=r"^explicit: missing; capture: explicit needs"):
        Settings.parse(LEAST | {"capture": "explicit"})
    declared = {"outbound": [{"listen": "127.0.0.1:1", "destination": "10.0.0.1:1"}]}
    with pytest.raises(ConfigError, match=r"^explicit: set with capture: redirect"):
        Settings.parse(LEAST | {"explicit": declared})


def test_no_port_is_used_twice():
    with pytest.raises(ConfigError, match=r"inbound_listen: 0\.0\.0\.0:15021 is taken by ready_listen"):
        Settings.parse(LEAST | {"inbound_listen": "0.0.0.0:15021"})
    twice = {"listen": "127.0.0.1:9001", "destination": "10.96.0.1:80"}
    with pytest.raises(ConfigError, match=r"explicit\.outbound\[1\]\.listen: .* is taken by explicit\.outbound\[0\]"):
        Settings.parse(LEAST | {"capture": "explicit", "explicit": {"outbound": [twice, twice]}})


def write(tmp_path, text):
    path = tmp_path / "sidecar.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = "\n".join(f"{name}: {value}" for name, value in LEAST.items())


def test_a_file_is_read(tmp_path):
    assert Settings.load(write(tmp_path, GOOD)) == Settings.parse(LEAST)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not YAML"),
        ("a: b: c", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("", "not a mapping"),
        (GOOD + "\nunsynced: deny\nunsynced: learn\n", "unsynced: written twice"),
        (GOOD + "\nexplicit: {outbound: [], outbound: []}\n", "outbound: written twice"),
        (GOOD + "\n7: x\n", "line 8 is not text but '7'"),
        ("x" * 300_000, "not a settings file"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        Settings.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"/nowhere/sidecar\.yaml: No such file.*--config"):
        Settings.load(Path("/nowhere/sidecar.yaml"))


# An environment variable ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [GOOD, json.dumps(LEAST)], ids=["yaml", "json"])
def test_an_environment_variable_holds_the_same_document(text):
    assert Settings.from_environment("X", {"X": text}) == Settings.parse(LEAST)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, r"'X' is not set; .*--config FILE"),
        ({"X": ""}, "'X': .*not a mapping"),
        ({"X": "{"}, "'X': not YAML"),
        ({"X": "\udcff"}, "'X': not YAML in UTF-8"),
        ({"X": json.dumps(LEAST | {"unsnced": "deny"})}, r"'X': unsnced: unknown .*'unsynced'"),
        ({"X": json.dumps(LEAST | {"instance": "$(POD_NAME)"})}, r"\$\(POD_NAME\) was not filled in: `env` has to"),
        ({"X": json.dumps(LEAST | {"addresses": "$(POD_IPS)"})}, r"addresses\[0\].*\$\(POD_IPS\) was not filled in"),
    ],
)
def test_a_bad_environment_variable_is_named_with_its_fault(environment, says):
    with pytest.raises(ConfigError, match=says) as error:
        Settings.from_environment("X", environment)
    assert str(error.value).startswith("environment variable 'X'")
    assert "\n" not in str(error.value)


# DNS and what is not captured -----------------------------------------------------------------------------------------


def test_dns_goes_through_us_where_connections_are_captured():
    settings = Settings.parse(LEAST)
    assert settings.dns_proxy
    assert ("dns.listen", Address("127.0.0.1", 15053)) in settings.listeners()
    assert not Settings.parse(LEAST | {"dns": {"proxy": False}}).dns_proxy
    explicit = {"capture": "explicit", "explicit": {"inbound": [{"listen": "10.0.0.7:80", "application": "[::1]:80"}]}}
    assert not Settings.parse(LEAST | explicit).dns_proxy
    assert Settings.parse(LEAST | explicit | {"dns": {"proxy": True}}).dns_proxy


def test_dns_can_be_set():
    document = {
        "listen": "127.0.0.1:5353",
        "upstreams": ["10.96.0.10:53", "[fd00::a]:53"],
        "patience": 1,
        "deadline": 3,
        "keep": 0,
        "in_flight": 10,
        "connections": 5,
        "pipelined": 4,
        "idle": 3,
        "addresses": 2,
        "names": 1,
    }
    upstreams = (Address("10.96.0.10", 53), Address("fd00::a", 53))
    assert Settings.parse(LEAST | {"dns": document}).dns == Dns(
        None, Address("127.0.0.1", 5353), upstreams, 1.0, 3.0, 0.0, 10, 5, 4, 3.0, 2, 1
    )


#: Nothing is captured.
WITHOUT = {
    "capture": "explicit",
    "explicit": {"inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:80"}]},
}


def test_what_is_not_captured_can_be_set():
    document = {"exclude_outbound_ports": [25, 3306], "exclude_inbound_ports": [9100], "udp": "drop"}
    settings = Settings.parse(LEAST | document)
    assert (settings.exclude_outbound_ports, settings.exclude_inbound_ports) == ((25, 3306), (9100,))
    assert settings.udp is Udp.DROP
    assert Settings.parse(LEAST).udp is Udp.ALLOW


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"dns": True}, "dns: True is not a mapping"),
        ({"dns": {"proxy": "yes"}}, r"dns\.proxy: .* write true or false"),
        ({"dns": {"upstream": []}}, r"dns\.upstream: unknown setting; did you mean 'upstreams'"),
        ({"dns": {"upstreams": ["10.0.0.1"]}}, r"dns\.upstreams\[0\]: .*host:port"),
        ({"dns": {"upstreams": ["10.0.0.1:0"]}}, r"dns\.upstreams\[0\]: port 0"),
        ({"dns": {"upstreams": ["127.0.0.1:15053"]}}, r"dns\.upstreams: 127\.0\.0\.1:15053 is where we listen"),
        ({"dns": {"listen": "127.0.0.1:0"}}, r"dns\.listen: port 0"),
        ({"dns": {"listen": "127.0.0.1:15001"}}, r"127\.0\.0\.1:15001 is taken by"),
        ({"dns": {"deadline": 0}}, r"dns\.deadline: "),
        ({"udp": "reject"}, "udp: .*allow, drop"),
        ({"exclude_outbound_ports": [0]}, r"exclude_outbound_ports\[0\]"),
        ({"exclude_inbound_ports": 80}, "exclude_inbound_ports: .* list"),
        (
            {"udp": "drop", "capture": "explicit", "explicit": {"outbound": []}},
            "explicit: missing",
        ),
        (
            {
                "udp": "drop",
                "capture": "explicit",
                "explicit": {"inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:80"}]},
            },
            "udp: drop needs capture: redirect",
        ),
        (
            WITHOUT | {"exclude_cidrs": ["10.0.0.0/8"]},
            "^exclude_cidrs: with capture: explicit nothing is captured .*; remove it",
        ),
        (WITHOUT | {"exclude_inbound_ports": [80]}, "^exclude_inbound_ports: with capture: explicit nothing"),
        (WITHOUT | {"exclude_outbound_ports": [80]}, "^exclude_outbound_ports: with capture: explicit nothing"),
        (WITHOUT | {"inbound_listen": "0.0.0.0:80"}, "^inbound_listen: with capture: explicit nothing"),
        (WITHOUT | {"outbound_listen": "127.0.0.1:80"}, "^outbound_listen: with capture: explicit nothing"),
    ],
)
def test_mistakes_about_dns_and_what_is_not_captured_are_named(document, says):
    with pytest.raises(ConfigError, match=says):
        Settings.parse(LEAST | document)
