"""One controller with traffic in its graph for the tests of a module, and a quick way to run the command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hedgerow.served import Served, populate, served
from tests.hedgerow.zygote import Zygote


@pytest.fixture(scope="session")
def command() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("controller")) as running:
        populate(running)
        yield running
