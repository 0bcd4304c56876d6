"""The policies of shop/front and shop/cart, and a connection between them that is held open."""

from __future__ import annotations

import asyncio

import pytest

from tests.sidecar.dataplane import applications as apps

PORT = 9300
RULE = {"from": "shop/front", "to": "shop/cart", "port": PORT}
ALLOW = {"rules": [RULE]}
STRICT = ALLOW | {"tls": "strict"}


async def ended(reader):
    """Wait until the connection ends badly."""
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(60):
            await reader.readexactly(1)


async def open_echo(pod, address, port=PORT):
    reader, writer = await apps.connect(pod, address, port)
    writer.write(b"ECHO\nhello")
    assert await reader.readexactly(5) == b"hello"
    return reader, writer
