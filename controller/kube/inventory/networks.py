"""The cluster's own networks: of pods, services and nodes. Pure.

There may be one network for each node and more nodes than an inventory has room for. So they are joined, and where that
is not enough the two that are closest are widened into one, again and again: what is said to be the cluster's own is
closed to rules about hosts outside, so too much is safe, and too little is not. What is nearly everything is said to be
unknown instead.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable

from controller.inventory.reader import MAX_NETWORKS

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: Nobody's cluster is larger; wider than this it would only close the world.
_WIDEST = {4: 6, 6: 16}


def cluster_networks(written: Iterable[str], at_most: int = MAX_NETWORKS) -> tuple[str, ...]:
    """Networks and addresses, joined to ``at_most`` networks that cover all of them, sorted.

    Empty when nothing is known, or when what covers them would be wider than any cluster.
    """
    known = {each for text in written if (each := _read(text)) is not None}
    found: list[Network] = [
        *ipaddress.collapse_addresses(each for each in known if isinstance(each, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(each for each in known if isinstance(each, ipaddress.IPv6Network)),
    ]
    while len(found) > at_most:
        found = _widened(found)
    if any(each.prefixlen < _WIDEST[each.version] for each in found):
        return ()
    return tuple(sorted(str(each) for each in found))


def _read(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _widened(found: list[Network]) -> list[Network]:
    """With the two neighbours that lose the least put into one network."""
    found = sorted(found, key=lambda each: (each.version, each))
    pairs = [(one, other) for one, other in itertools.pairwise(found) if one.version == other.version]
    joined = [_covering(one, other) for one, other in pairs]
    if not joined:  # one network of each version, and still too many
        return found[:1]
    smallest = max(joined, key=lambda each: each.prefixlen - (0 if each.version == 4 else 96))
    rest = [each for each in found if each.version != smallest.version or not each.subnet_of(smallest)]  # type: ignore[arg-type]  # of one version
    return [*rest, smallest]


def _covering(one: Network, other: Network) -> Network:
    bits = one.max_prefixlen
    differing = (int(one.network_address) ^ int(other.network_address)).bit_length()
    length = min(one.prefixlen, other.prefixlen, bits - differing)
    return one.supernet(new_prefix=length)
