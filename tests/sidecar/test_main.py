"""What the command makes of the settings before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.__main__ import capture_rules, main
from sidecar.app import data_plane_settings
from sidecar.capture_settings import Capture, Explicit, InboundListener, OutboundListener, Udp
from sidecar.dns.settings import Dns
from sidecar.errors import ConfigError
from sidecar.settings import Address, Settings

SETTINGS = Settings(
    instance="cart-1",
    controller=Address("10.0.0.1", 15012),
    issuer=Address("10.0.0.2", 15013),
    trust_domain="hedgerow.test",
    trust_bundle=Path("bundle.pem"),
    state_dir=Path("state"),
    addresses=("10.0.0.7",),
    exclude_cidrs=("169.254.0.0/16",),
)


def test_capture_exempts_the_sidecars_user():
    rules = capture_rules(SETTINGS)
    assert (rules.uid, rules.mark) == (1337, 0)
    assert rules.exclude_cidrs == ("169.254.0.0/16",)
    assert (rules.outbound_port, rules.inbound_port) == (15001, 15006)
    assert {15006, 15021} <= set(rules.sidecar_ports)


def test_capture_of_dns_and_what_is_left_out():
    rules = capture_rules(SETTINGS)
    assert (rules.dns_port, rules.drop_others) == (15053, False)
    assert capture_rules(replace(SETTINGS, dns=Dns(listen=Address("127.0.0.1", 5353)))).dns_port == 5353
    rules = capture_rules(
        replace(
            SETTINGS,
            dns=Dns(proxy=False),
            udp=Udp.DROP,
            exclude_outbound_ports=(25,),
            exclude_inbound_ports=(9100,),
        )
    )
    assert (rules.dns_port, rules.drop_others) == (0, True)
    assert (rules.exclude_outbound_ports, rules.exclude_inbound_ports) == ((25,), (9100,))


def test_a_pod_with_ipv6_is_listened_for_in_both_versions():
    made = data_plane_settings(replace(SETTINGS, addresses=("10.0.0.7", "fd00::7")))
    assert made.outbound_listen == (("127.0.0.1", 15001), ("::1", 15001))
    assert made.inbound_listen == (("0.0.0.0", 15006), ("::", 15006))
    own = replace(SETTINGS, addresses=("fd00::7",), inbound_listen=Address("fd00::7", 15006))
    assert data_plane_settings(own).inbound_listen == (("fd00::7", 15006),)
    assert data_plane_settings(SETTINGS).outbound_listen == (("127.0.0.1", 15001),)
    assert 15053 in made.sidecar_ports


def test_with_a_mark_the_controller_is_told_by_its_address():
    rules = capture_rules(replace(SETTINGS, uid=0, mark=7))
    assert (rules.uid, rules.mark) == (None, 7)
    assert set(rules.exclude_cidrs) == {"169.254.0.0/16", "10.0.0.1/32", "10.0.0.2/32"}
    with pytest.raises(ConfigError, match="controller: 'example' is a name"):
        capture_rules(replace(SETTINGS, uid=0, mark=7, controller=Address("example", 1)))


def test_capture_of_root_without_a_mark_is_refused():
    with pytest.raises(ConfigError, match="uid: 0"):
        capture_rules(replace(SETTINGS, uid=0))


def test_explicit_mode_has_no_capture():
    with pytest.raises(ConfigError, match="explicit needs no capture rules"):
        capture_rules(replace(SETTINGS, capture=Capture.EXPLICIT))


def test_capture_needs_settings_unless_it_removes(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["capture"])
    assert exit_.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "sidecar.yaml").write_text("unsynced: deny")
    assert main(["capture", "--config", str(tmp_path / "sidecar.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")


def test_the_data_path_listens_where_capture_leads():
    settings = replace(SETTINGS, mark=7, outbound_listen=Address("127.0.0.1", 25001), mtls_alpn=("x",))
    made = data_plane_settings(replace(settings, mtls_ports=frozenset({443})))
    assert made.outbound_listen == (("127.0.0.1", 25001),)
    assert made.inbound_listen == (("0.0.0.0", 15006),)
    assert made.mark == 7
    assert (made.mtls_ports, made.mtls_alpn) == ({443}, ("x",))
    assert made.addresses == {"10.0.0.7"}
    assert {25001, 15006, 15021} <= made.sidecar_ports


def test_the_data_path_listens_on_declared_ports_alone():
    explicit = Explicit(
        (OutboundListener(Address("127.0.0.1", 9001), Address("10.96.0.1", 80)),),
        (InboundListener(Address("10.0.0.7", 80), Address("127.0.0.1", 8080)),),
    )
    made = data_plane_settings(replace(SETTINGS, capture=Capture.EXPLICIT, explicit=explicit))
    assert made.outbound_listen == made.inbound_listen == ()
    assert [(one.listen, one.destination) for one in made.explicit_outbound] == [
        (("127.0.0.1", 9001), ("10.96.0.1", 80))
    ]
    assert [(one.listen, one.application) for one in made.explicit_inbound] == [(("10.0.0.7", 80), ("127.0.0.1", 8080))]
