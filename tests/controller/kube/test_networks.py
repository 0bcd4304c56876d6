"""The cluster's own networks: joined, widened where they are too many, and never less than what was said."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from controller.kube.inventory.networks import cluster_networks

NETWORKS = st.lists(
    st.builds(lambda a, b, c, length: f"10.{a}.{b}.{c}/{length}", *[st.integers(0, 255)] * 3, st.integers(16, 32)),
    max_size=60,
)


def test_nodes_pods_and_services_are_joined():
    said = ["10.244.0.0/24", "10.244.1.0/24", "10.96.0.0/16", "192.168.1.1", "fd00:10::/108", "nonsense"]
    assert cluster_networks(said) == ("10.244.0.0/23", "10.96.0.0/16", "192.168.1.1/32", "fd00:10::/108")
    assert cluster_networks([]) == ()


def test_many_are_widened_to_what_is_closest():
    nodes = [f"10.244.{2 * n}.0/24" for n in range(30)]
    found = cluster_networks([*nodes, "10.96.0.0/16", "fd00::/108"])
    assert len(found) <= 16
    assert {"10.96.0.0/16", "fd00::/108"} <= set(found)


def test_what_would_be_nearly_everything_is_unknown():
    spread = [f"{n}.1.2.3" for n in range(1, 224, 3)]
    assert cluster_networks(spread, at_most=1) == ()


@given(NETWORKS)
def test_everything_that_was_said_is_covered(said):
    found = [ipaddress.ip_network(each) for each in cluster_networks(said)]
    assert len(found) <= 16
    for each in said:
        assert any(ipaddress.ip_network(each, strict=False).subnet_of(network) for network in found)
