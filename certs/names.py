"""Name constraints (RFC 5280 section 4.2.1.10) over a path, for the forms of name that Hedgerow's certificates carry.

URI constraints name a trust domain: they match the authority of a SPIFFE ID. DNS constraints match host names. A
constraint of any other form is not evaluated: where it meets a name of its form, the path is refused. Wildcards,
leading dots in DNS constraints and other spellings with more than one reading are refused wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from certs.certificate import extension
from certs.errors import InvalidCertificate, InvalidSpiffeId, UntrustedChain
from certs.spiffe import SpiffeId, check_trust_domain

#: Constraints of a path times its names is work done for a stranger.
MAX_CONSTRAINTS = 64
MAX_NAMES = 64

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_ALL_NUMERIC = re.compile(r"(.*\.)?[0-9]+")


def check_name_constraints(path: Sequence[x509.Certificate]) -> None:
    """Apply the constraints of every signing certificate to every certificate below it.

    Unlike RFC 5280 section 6.1.4 (b), self-issued certificates are not exempt: nothing in a SPIFFE path needs that.

    :param path: leaf first, trust anchor last
    :raises UntrustedChain: when a name is outside a constraint, or a constraint cannot be evaluated
    """
    # a level per signing certificate: a name must be within the permitted names of each level that constrains its form
    levels: list[list[x509.GeneralName]] = []
    excluded: list[x509.GeneralName] = []
    for certificate in reversed(path):
        for name in names_of(certificate):
            _check(name, levels, excluded)
        own = extension(certificate, x509.NameConstraints)
        if own is not None:
            levels.append(list(own.value.permitted_subtrees or ()))
            excluded += own.value.excluded_subtrees or ()
            if sum(map(len, levels)) + len(excluded) > MAX_CONSTRAINTS:
                raise UntrustedChain(f"name constraints: more than {MAX_CONSTRAINTS} in one path")


def check_constraint_forms(certificate: x509.Certificate, what: str) -> None:
    """Refuse a signing certificate whose name constraints are not critical, or open to more than one reading.

    :raises InvalidCertificate: when they are
    """
    own = extension(certificate, x509.NameConstraints)
    if own is None:
        return
    if not own.critical:
        raise InvalidCertificate(f"{what}: its name constraints are not critical")
    for constraint in (*(own.value.permitted_subtrees or ()), *(own.value.excluded_subtrees or ())):
        if isinstance(constraint, x509.DNSName) and not is_host_name(constraint.value):
            raise InvalidCertificate(f"{what}: it constrains DNS name {constraint.value!a:.100}, no plain host name")
        if isinstance(constraint, x509.UniformResourceIdentifier):
            try:
                check_trust_domain(constraint.value.removeprefix("."))
            except InvalidSpiffeId as error:
                raise InvalidCertificate(f"{what}: it constrains URIs to no trust domain, {error}") from None


def names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Every name that constraints speak of: the alternative names, the subject, and mail addresses within the subject.

    :raises UntrustedChain: when there are too many, or a DNS name is not a plain host name
    """
    alternative = extension(certificate, x509.SubjectAlternativeName)
    names: list[x509.GeneralName] = list(alternative.value) if alternative is not None else []
    if len(names) > MAX_NAMES:
        raise UntrustedChain(f"subject alternative name: more than {MAX_NAMES} names")
    for name in names:
        if isinstance(name, x509.DNSName) and not is_host_name(name.value):
            raise UntrustedChain(f"subject alternative name: DNS name {name.value!a:.100} is not a plain host name")
    if certificate.subject.rdns:
        names.append(x509.DirectoryName(certificate.subject))
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        try:
            names.append(x509.RFC822Name(str(attribute.value)))
        except ValueError:
            raise UntrustedChain("subject: its mail address is not ASCII") from None
    return names


def is_host_name(text: str) -> bool:
    """Whether ``text`` is a host name in preferred syntax (RFC 1034 section 3.5), lower case, and not an address."""
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None and _ALL_NUMERIC.fullmatch(text) is None


def _check(name: x509.GeneralName, levels: list[list[x509.GeneralName]], excluded: list[x509.GeneralName]) -> None:
    for permitted in levels:
        of_form = [constraint for constraint in permitted if type(constraint) is type(name)]
        if of_form and not any(_within(name, constraint) for constraint in of_form):
            raise UntrustedChain(f"name constraints: {name.value!a:.200} is not within what is permitted")
    for constraint in excluded:
        if type(constraint) is type(name) and _within(name, constraint):
            raise UntrustedChain(f"name constraints: {name.value!a:.200} is excluded")


def _within(name: x509.GeneralName, constraint: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName):
        return f".{name.value}".endswith(f".{constraint.value}")
    if isinstance(name, x509.UniformResourceIdentifier):
        try:
            trust_domain = SpiffeId.parse(name.value).trust_domain
        except InvalidSpiffeId as error:
            raise UntrustedChain(f"name constraints: they cannot be applied to a URI, {error}") from None
        within = str(constraint.value)
        return trust_domain.endswith(within) if within.startswith(".") else trust_domain == within
    raise UntrustedChain(f"name constraints: those on names of the form {type(name).__name__} are not evaluated")
