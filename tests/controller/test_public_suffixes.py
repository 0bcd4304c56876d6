"""Domains below which anybody has names, and those that are somebody's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from publicsuffixlist import PublicSuffixList

from controller import public_suffixes
from controller.public_suffixes import MORE, Shared, shared_domain
from graph.model import is_host
from graph.outside import parse_outside


@pytest.mark.parametrize(
    ("end", "suffix"),
    [
        ("*.co.uk", "co.uk"),
        ("*.ne.jp", "ne.jp"),
        ("*.github.io", "github.io"),
        ("*.s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"),
        ("*.cloudfront.net", "cloudfront.net"),
        ("*.blob.core.windows.net", "blob.core.windows.net"),
        ("*.example.ck", "example.ck"),  # *.ck: whatever is below ck
        ("*.kobe.jp", "kobe.jp"),  # *.kobe.jp stands for itself too
        ("*.city.kobe.jp", ""),  # !city.kobe.jp is the city's own
        ("*.公司.cn", "xn--55qx5d.cn"),
        ("*.个人.hk", "xn--ciqpn.hk"),
        ("*.nip.io", "nip.io"),  # of ours: the list has it not
        ("*.sharepoint.com", "sharepoint.com"),
        ("*.example.co.uk", ""),
        ("*.acme.github.io", ""),
        ("*.stripe.com", ""),
        ("*.example.corp", ""),
        ("co.uk", ""),
        ("192.0.2.0/24", ""),
    ],
)
def test_names_that_anybody_can_have_are_known(end: str, suffix: str) -> None:
    found = shared_domain(parse_outside(end))
    assert (found.suffix if found else "") == suffix
    assert found is None or found.problem == f"below {suffix} anybody has names"


@pytest.mark.parametrize(
    ("end", "below"),
    [
        ("*.azure.com", "cloudapp.azure.com"),
        ("*.amazonaws.com", "s3.amazonaws.com"),
        ("*.cloudflarestorage.com", "r2.cloudflarestorage.com"),
        ("*.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"),
    ],
)
def test_so_are_domains_below_which_there_are_such(end: str, below: str) -> None:
    found = shared_domain(parse_outside(end))
    assert found is not None
    assert found.domain == end.removeprefix("*.")
    assert found.suffix.endswith("." + found.domain)
    assert PublicSuffixList().is_public(found.suffix) or found.suffix in MORE
    assert shared_domain(parse_outside(f"*.{below}")) == Shared(below, below)
    assert found.suffix.count(".") <= below.count("."), "the shortest is named"
    assert found.problem == f"{end} takes in {found.suffix}, below which anybody has names"
    assert f"*.example.{found.suffix}" in found.remedy


def test_every_rule_of_the_list_is_followed() -> None:
    """None is passed over because of how it is written, and the list is the whole one."""
    rules = [public_suffixes._in_ascii(rule) for rule in public_suffixes._written()]
    assert len(rules) > 9_000
    assert {"com", "co.uk", "*.ck", "!www.ck", "github.io"} <= set(rules)
    for rule in rules:
        bare = rule.lstrip("!").removeprefix("*.")
        assert is_host(f"x.{bare}"), rule
        if "." in bare and not rule.startswith("!"):
            assert shared_domain(parse_outside(f"*.{bare}")) == Shared(bare, bare), rule


def test_what_we_add_is_not_on_the_list() -> None:
    suffixes = PublicSuffixList()
    assert [each for each in sorted(MORE) if suffixes.is_public(each)] == [], "it may go from MORE"


def test_no_sidecar_loads_it() -> None:
    """Its memory counts in every pod."""
    script = (
        "import sys, sidecar.app, sidecar.__main__; print(sorted({'publicsuffixlist', 'idna'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
