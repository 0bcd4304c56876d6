"""DNS messages as tests write them, made by other means than the code that reads them."""

from __future__ import annotations

import ipaddress
import struct

A, CNAME, SOA, TXT, AAAA, OPT = 1, 5, 6, 16, 28, 41
RESPONSE = 0x8180
QUERY = 0x0100
TRUNCATED = 0x0200


def name(text: str) -> bytes:
    labels = [label.encode("latin-1") for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(host: str, kind: int = A, klass: int = 1) -> bytes:
    return name(host) + struct.pack("!HH", kind, klass)


def record(owner: str | bytes, kind: int, data: bytes, ttl: int = 60, klass: int = 1) -> bytes:
    owned = owner if isinstance(owner, bytes) else name(owner)
    return owned + struct.pack("!HHIH", kind, klass, ttl, len(data)) + data


def address(owner: str | bytes, value: str, ttl: int = 60) -> bytes:
    packed = ipaddress.ip_address(value).packed
    return record(owner, A if len(packed) == 4 else AAAA, packed, ttl)


def alias(owner: str | bytes, target: str | bytes, ttl: int = 60) -> bytes:
    return record(owner, CNAME, target if isinstance(target, bytes) else name(target), ttl)


def opt(data: bytes = b"", payload: int = 1232) -> bytes:
    return record(b"\0", OPT, data, klass=payload, ttl=0)


def message(number: int, flags: int, questions=(), answers=(), authorities=(), additional=()) -> bytes:
    sections = (questions, answers, authorities, additional)
    header = struct.pack("!6H", number, flags, *map(len, sections))
    return header + b"".join(part for section in sections for part in section)


def query(host: str, kind: int = A, number: int = 0x1234, **sections) -> bytes:
    return message(number, QUERY, [question(host, kind)], **sections)


def response(host: str, *answers: bytes, kind: int = A, number: int = 0x1234, rcode: int = 0, **sections) -> bytes:
    return message(number, RESPONSE | rcode, [question(host, kind)], answers, **sections)


def rcode(data: bytes) -> int:
    return data[3] & 0x0F
