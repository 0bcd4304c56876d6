"""What every test shares: no test judges the machine's speed, and a test has one name.

Sessions side by side have to agree on the names of the tests: bytes too long to be read are called by their parameter's
name, for keys and signatures in them differ every time.
"""

from __future__ import annotations

import pytest

from tests import random_cases

#: What mostly waits, which work beside it makes use of: where files run side by side, these are the first.
FIRST = ("tests/local/test_demo.py", "tests/sidecar/workers", "tests/mesh", "tests/local", "tests/endurance")
#: Bytes up to here say something in a test's name.
READABLE = 40

random_cases.load()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name what no name should be made of after its parameter; pytest adds numbers to equal names."""
    return argname if isinstance(val, bytes) and len(val) > READABLE else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long ones, in every worker alike, so that none of them is what is left over at the end."""
    if not (config.getoption("numprocesses", None) or hasattr(config, "workerinput")):
        return

    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST))

    items.sort(key=place)
