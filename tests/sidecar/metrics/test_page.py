"""The scraped page: right in both formats, cheap however often it is asked for, and the application's own behind it."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from sidecar.admin.server import Request
from sidecar.metrics.exposition import OPENMETRICS, TEXT
from sidecar.metrics.page import MetricsPage
from sidecar.metrics.registry import Registry
from sidecar.observation import MergedMetrics
from tests.sidecar.fake_controller import until
from tests.sidecar.http_client import answer, application, free_port


def scrape(accept="", **fields):
    return Request("GET", "/metrics", "10.0.0.9", {"accept": accept, **fields})


@pytest.fixture
def registry():
    made = Registry()
    made.counter("hedgerow_x_total", "X", "a").cell("y").value = 3
    return made


async def body_of(page, asked=None):
    return b"".join((await page.answer(asked or scrape())).body).decode()


@pytest.mark.parametrize(
    ("accept", "kind", "read"),
    [("", TEXT, read_text), ("application/openmetrics-text;version=1.0.0", OPENMETRICS, read_openmetrics)],
)
async def test_both_formats(registry, accept, kind, read):
    given = await MetricsPage(registry).answer(scrape(accept))
    assert (int(given.status), given.kind) == (200, kind)
    families = {family.name: family for family in read(b"".join(given.body).decode())}
    assert families["hedgerow_x"].samples[0].value == 3


async def test_those_who_scrape_at_once_share_a_page():
    made = 0

    def count():
        nonlocal made
        made += 1
        return made

    registry = Registry()
    registry.read("hedgerow_made", "Made", count)
    page = MetricsPage(registry)
    pages = await asyncio.gather(*(body_of(page) for _ in range(50)))
    assert len(set(pages)) == 1
    assert made == 1
    # later, a new one is made
    await until(lambda: not page._made)
    assert "hedgerow_made 2" in await body_of(page)


async def test_others_have_their_turn_while_a_long_page_is_made():
    registry = Registry()
    made = registry.histogram("hedgerow_h", "H", range(50), *(f"label_{index}" for index in range(20)))
    for index in range(256):
        made.cell(str(index), *["a rather long value of a label"] * 19).observe(index)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    page = MetricsPage(registry)
    other = asyncio.create_task(others())
    text = await body_of(page)
    other.cancel()
    assert text.count("hedgerow_h_count") == 256
    assert turns > 5


async def test_a_number_that_can_not_be_had_costs_no_other(registry, caplog):
    broken = True

    def read():
        if broken:
            raise OSError("gone")
        return 1

    registry.read("hedgerow_y", "Y", read)
    page = MetricsPage(registry)
    for _ in range(3):
        text = await body_of(page)
        assert "hedgerow_x_total" in text
        assert "hedgerow_y" not in text
        await until(lambda: not page._made)
    assert len(caplog.records) == 1
    broken = False
    assert "hedgerow_y 1" in await body_of(page)


class Broken:
    """A collector with a fault."""

    folded = 0

    def settle(self):
        raise RuntimeError("a fault")

    def expose(self, page):
        yield from ()


async def test_a_page_that_could_not_be_made_is_tried_again(registry):
    registry.add(Broken(), "hedgerow_broken")
    page = MetricsPage(registry)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a fault"):
            await page.answer(scrape())


APPLICATION = b"""# HELP app_requests_total Requests
# TYPE app_requests_total counter
app_requests_total{path="/"} 7
"""


#: What the application's page may have: bytes, and seconds.
LONGEST, PATIENCE = 2 << 20, 30.0


async def merged(registry, data, path="/m", **fields):
    async with application(lambda head: data) as (port, heads):
        page = MetricsPage(registry, MergedMetrics(port, path, max_bytes=LONGEST, timeout=PATIENCE), "127.0.0.1")
        given = await page.answer(scrape("application/openmetrics-text;version=1.0.0", **fields))
        assert given.kind == TEXT
        return b"".join(given.body).decode(), heads, page.merges


async def test_the_applications_metrics_stand_behind_ours(registry):
    text, heads, merges = await merged(registry, answer("200 OK", APPLICATION, "Content-Type: text/plain"))
    families = {family.name: family for family in read_text(text)}
    assert families["hedgerow_x"].samples[0].value == 3
    assert families["app_requests"].samples[0].value == 7
    assert heads[0].startswith("GET /m HTTP/1.1\r\n")
    assert "Accept: text/plain;version=0.0.4" in heads[0]
    assert merges == {("success",): 1}


async def test_a_page_without_a_last_line_break_is_ended(registry):
    text, _, _ = await merged(registry, answer("200 OK", b"app_x 1"))
    assert text.endswith("app_x 1\n")


async def test_what_the_application_says_of_the_mesh_is_left_out(registry):
    forged = b"""# TYPE istio_requests_total counter
istio_requests_total{reporter="source"} 1000000
  istio_tcp_sent_bytes_total 5
\t# HELP hedgerow_ready Lies
hedgerow_ready 1
{"istio_requests_total",reporter="source"} 9
{reporter="source","istio_requests_total"} 9
"istio_requests_total" 9
app_istio_total 3
# a remark on istio_requests_total
"""
    text, _, _ = await merged(registry, answer("200 OK", forged + APPLICATION))
    after = text.partition("hedgerow_metrics_folded_total 0\n")[2]
    assert after.encode() == b"app_istio_total 3\n# a remark on istio_requests_total\n" + APPLICATION


@pytest.mark.parametrize(
    "data",
    [
        answer("404 Not Found", APPLICATION),
        answer("200 OK", APPLICATION, "Content-Type: application/openmetrics-text; version=1.0.0"),
        answer("200 OK", b"app_x 1\n" * (LONGEST // 8 + 1)),
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\napp_half 1\n",
    ],
)
async def test_a_bad_page_costs_only_itself(registry, data):
    text, _, merges = await merged(registry, data)
    assert "hedgerow_x_total" in text
    assert "app_" not in text
    assert merges == {("failure",): 1}


async def test_an_application_that_does_not_answer_costs_only_itself(registry):
    text, _, merges = await merged(registry, None, **{"x-prometheus-scrape-timeout-seconds": "0.1"})
    assert "hedgerow_x_total" in text
    assert merges == {("failure",): 1}
    page = MetricsPage(registry, MergedMetrics(free_port()), "127.0.0.1")
    assert "hedgerow_x_total" in await body_of(page)


async def test_a_big_page_is_merged_whole(registry):
    lines = b"".join(b'app_x{index="%d"} %d\n' % (index, index) for index in range(50_000))
    text, _, _ = await merged(registry, answer("200 OK", lines))
    assert text.encode().endswith(lines)
