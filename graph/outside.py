"""What people may say of the outside: an address, a network, a host, or all names below a domain.

A connection goes to one address, perhaps under one name; that is what :meth:`graph.model.WorkloadRef.parse` reads. An
*end* of what a person decides may be wider, and is read here and nowhere else: ``-/203.0.113.0/24``,
``-/*.example.com``. The governing rules:

1. One spelling for one thing: names in lower case, without a final dot, in ASCII (RFC 5891); networks without bits
   behind their prefix.
2. ``*.example.com`` is every name below ``example.com``, of one label more or of several, and never that name itself.
3. What cannot be read without doubt is refused, with what to write instead.

Pure.
"""

from __future__ import annotations

import ipaddress

from graph.errors import InvalidValue
from graph.model import EXTERNAL_NAMESPACE, WorkloadRef, is_host

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WILDCARD = "*."
#: The longest name that is looked at; DNS ends at 253 characters, and an IDN is longer in ASCII than as it is written.
_LONGEST = 253


def parse_end(text: str, *, field: str = "workload") -> WorkloadRef:
    """Read ``namespace/name``, or ``-/`` and what :func:`parse_outside` reads.

    :raises InvalidValue: naming ``field``
    """
    if text.startswith(f"{EXTERNAL_NAMESPACE}/"):
        return parse_outside(text[2:], field=field)
    return WorkloadRef.parse(text, field=field)


def parse_outside(text: str, *, field: str = "to") -> WorkloadRef:
    """Read ``192.0.2.7``, ``203.0.113.0/24``, ``api.example.com`` or ``*.example.com``.

    :raises InvalidValue: naming ``field``, and the remedy
    """
    if "/" in text:
        return network_end(text, field=field)
    if _address(text) is not None:
        return WorkloadRef.external(text, field=field)
    return name_end(text, field=field)


def name_end(text: str, *, field: str = "host") -> WorkloadRef:
    """Read ``api.example.com`` or ``*.example.com``.

    :raises InvalidValue: naming ``field``, and the remedy
    """
    if text.strip(".") in ("*", ""):
        raise InvalidValue(
            field,
            f"{text!r} names everybody" if text else "empty",
            "name a host (api.example.com), the names below a domain (*.example.com), or a network (0.0.0.0/0)",
        )
    wildcard = _WILDCARD if text.startswith(_WILDCARD) else ""
    host = normal_host(text.removeprefix(wildcard), field=field)
    if is_host(host):
        return WorkloadRef(EXTERNAL_NAMESPACE, wildcard + host)
    if wildcard and "." not in host and "*" not in host:
        problem, remedy = f"*.{host[:64]} is every name of a whole top-level domain", "name a domain: *.example.com"
    elif "*" in text:
        problem = f"{text[:64]!r} has its '*' where it can not stand"
        remedy = "write *.example.com for every name below a domain"
    else:
        problem, remedy = f"{text[:64]!r} is no address, network or host name", "write api.example.com or 192.0.2.0/24"
    raise InvalidValue(field, problem, remedy)


def normal_host(text: str, *, field: str = "host") -> str:
    """A name as it is asked of DNS: in lower case, without a final dot, in ASCII. It may still be no host name.

    :raises InvalidValue: when it has characters that no name of IDNA 2008 has
    """
    name = text.removesuffix(".")
    if name.isascii():
        return name.lower()
    import idna  # by few, and never by a sidecar

    try:
        if len(name) > _LONGEST:
            raise ValueError
        return idna.encode(name, uts46=True, transitional=False).decode("ascii").lower()
    except ValueError:  # IDNAError is one, UnicodeError too
        raise InvalidValue(field, f"{text[:64]!r} is no host name", "write it in ASCII, as DNS has it: xn--…") from None


def network_of(ref: WorkloadRef) -> Network | None:
    """The network that an end is, one of a single address included; None when it is a workload or a name."""
    if not ref.is_external or ref.name.startswith("*") or is_host(ref.name):
        return None
    return ipaddress.ip_network(ref.name)


def is_wide(ref: WorkloadRef) -> bool:
    """Whether an end is more than one workload, address or host."""
    return ref.is_external and ("/" in ref.name or ref.name.startswith("*"))


def takes_in(end: WorkloadRef, ref: WorkloadRef) -> bool:
    """Whether something that one connection begins or ends at belongs to an end.

    A host is not known to be in a network, nor an address to have a name.
    """
    if end == ref:
        return True
    if not is_wide(end) or not ref.is_external:
        return False
    if end.name.startswith("*"):
        return ref.host.endswith(end.name[1:])
    network, address = ipaddress.ip_network(end.name), _address(ref.name)
    return address is not None and address.version == network.version and address in network


def network_end(text: str, *, field: str = "cidr") -> WorkloadRef:
    """Read ``203.0.113.0/24``; a network of one address is that address.

    :raises InvalidValue: naming ``field``, and the remedy
    """
    address, _, length = text.partition("/")
    try:
        if _address(address) is None or not (length.isascii() and length.isdecimal()):
            raise ValueError  # a zone, which is another network elsewhere; 10.0.0.0/255.0.0.0, which reads otherwise
        written = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidValue(
            field, f"{text[:64]!r} is not a network", "write it as 203.0.113.0/24 or 2001:db8::/32"
        ) from None
    if getattr(written.network_address, "ipv4_mapped", None) is not None:
        raise InvalidValue(
            field, f"{text[:64]!r} is IPv4 in IPv6 form", "write the IPv4 network, such as 203.0.113.0/24"
        )
    if written.network_address != ipaddress.ip_address(address):
        raise InvalidValue(
            field,
            f"{text[:64]!r} has bits behind its prefix",
            f"write {written}, or the address alone",
        )
    if written.num_addresses == 1:
        return WorkloadRef.external(str(written.network_address), field=field)
    return WorkloadRef(EXTERNAL_NAMESPACE, str(written))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
