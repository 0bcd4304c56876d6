"""The text form of the authority: PEM blocks, which ``openssl`` reads too, with comment lines that say what they are.

Knows sections, not what they mean: that is :mod:`certs.ca`. Anything that is not exactly of the form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.certificate import read_certificate, read_pem_certificates
from certs.errors import AuthorityError, CertError
from certs.keys import key_from_pem, key_to_pem

FORMAT = "1"
REMEDY = "restore it from a copy, or delete it to begin a new trust domain"

_WARNING = "# Hedgerow certificate authority. It holds private keys: whoever reads it can be any workload.\n"
_HEADER = re.compile(r"^# ([a-z-]+): (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Section:
    """A certificate, its key where there is one, and what is said of them."""

    part: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)
    about: Mapping[str, str] = field(default_factory=dict)


def format_sections(about: Mapping[str, str], sections: Sequence[Section]) -> bytes:
    """Write sections as one text."""
    text = [_WARNING, *_headers({"format": FORMAT, **about})]
    for section in sections:
        text += ["\n", *_headers({"part": section.part, **section.about})]
        text.append(section.certificate.public_bytes(Encoding.PEM).decode("ascii"))
        if section.key is not None:
            text.append(key_to_pem(section.key).decode("ascii"))
    return "".join(text).encode("ascii")


def parse_sections(pem: bytes) -> tuple[Mapping[str, str], list[Section]]:
    """Read what :func:`format_sections` wrote.

    :raises AuthorityError: when it is damaged, or of another format
    """
    try:
        head, *bodies = re.split(r"^(?=# part: )", pem.decode("ascii"), flags=re.MULTILINE)
        about = dict(_HEADER.findall(head))
        if about.get("format") != FORMAT:
            raise AuthorityError(
                f"authority: its format is {about.get('format', '')!a:.20}, this version reads {FORMAT}; {REMEDY}"
            )
        return about, [_section(body) for body in bodies]
    except ValueError:
        raise AuthorityError(f"authority: it is damaged; {REMEDY}") from None
    except AuthorityError:
        raise
    except CertError as error:
        raise AuthorityError(f"authority: it is damaged: {error}; {REMEDY}") from None


def _section(body: str) -> Section:
    about = dict(_HEADER.findall(body))
    data = body.encode("ascii")
    (der,) = read_pem_certificates(data, "authority")
    key = key_from_pem(data[data.index(b"-----BEGIN PRIVATE KEY-----") :]) if b"PRIVATE KEY-----" in data else None
    return Section(about.pop("part"), read_certificate(der, "certificate of the authority"), key, about)


def _headers(headers: Mapping[str, str]) -> list[str]:
    return [f"# {name}: {value}\n" for name, value in headers.items()]
