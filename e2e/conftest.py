"""What the suites share: a real API server for the session, a namespace for each test.

Nothing here skips: a suite that finds no Kubernetes fails and says what to do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import HarnessError
from tests import random_cases

random_cases.load()

#: The session's first test waits for a whole Kubernetes, on a machine that may do ten other things; seconds.
_TIMEOUT = 600
_SERVER = pytest.StashKey[ApiServer]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT))


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[ApiServer]:
    """etcd, kube-apiserver and kube-controller-manager, ready."""
    server = ApiServer(tmp_path_factory.mktemp("apiserver"))
    pytestconfig.stash[_SERVER] = server
    yield server
    del pytestconfig.stash[_SERVER]
    server.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever ended between two tests is begun again before a fixture needs it: no test is to blame for it.

    A module's fixture that failed is not tried again for the next test: one API server that is away fails them all.
    """
    _tell(f"before {item.nodeid}", _mended(item))
    server = item.config.stash.get(_SERVER, None)
    if server is not None and not server.running:  # a test was stopped before it could bring it back
        server.start()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """An API server that ends by itself during a test fails that test, and no other one.

    Controllers may end: they do when nobody answers them in their first moments, and go on when they are begun again.
    """
    ended = _mended(item)
    _tell(f"after {item.nodeid}", ended)
    if fatal := [words for name, words in ended.items() if name in ("etcd", "kube-apiserver")]:
        pytest.fail("while this test ran, " + "\n".join(fatal), pytrace=False)


def _mended(item: pytest.Item) -> dict[str, str]:
    server = item.config.stash.get(_SERVER, None)
    return server.mend() if server is not None else {}


def _tell(when: str, ended: dict[str, str]) -> None:
    for words in ended.values():
        print(f"\ne2e: begun again {when}: {words}", file=sys.__stderr__)


@pytest.fixture(autouse=True)
def left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that stopped the API server and failed takes no other test with it."""
    yield
    if "apiserver" in request.fixturenames:
        server: ApiServer = request.getfixturevalue("apiserver")
        if not server.running:
            server.start()


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """A fresh namespace with its ``default`` ServiceAccount; its deletion is asked for afterwards, not awaited."""
    name = apiserver.create_namespace()
    yield name
    with contextlib.suppress(HarnessError):  # a test may have deleted it, or have left the API server down
        apiserver.delete_namespace(name)
