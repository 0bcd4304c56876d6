"""One controller with traffic and one browser for all tests of the page, a fresh tab for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.hedgerow.served import Member, Served, populate, served
from tests.ui.browser import Tab, built_page, chromium


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    built_page()
    with served(tmp_path_factory.mktemp("controller")) as running:
        populate(running)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    yield Tab(context.new_page())
    context.close()


@pytest.fixture
def live(tab: Tab, controller: Served) -> Tab:
    """A tab that shows the graph."""
    tab.open(controller.url, controller.token)
    tab.wait_live(4)
    return tab


@pytest.fixture
def front(controller: Served) -> Iterator[Member]:
    """The sidecar of shop/front, to report more."""
    member = controller.join("shop/front", "front-0")
    yield member
    member.close()
