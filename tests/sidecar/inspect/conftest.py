"""Inspected connections in memory."""

from __future__ import annotations

import pytest

from tests.sidecar.inspect.connection import World


@pytest.fixture
async def world():
    """Makes worlds and takes them apart."""
    made: list[World] = []

    def make(*rules, **options) -> World:
        made.append(World(tuple(rules), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
