"""What is written is what Prometheus reads: checked by its own client's parsers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from sidecar.metrics.exposition import OPENMETRICS, TEXT, Kind, Page, labels_text, negotiate

#: Everything that UTF-8 can say, except what the parsers' line splitting takes for a line of its own.
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=20)


def page(openmetrics=False):
    made = Page(openmetrics=openmetrics)
    made.family("hedgerow_things_total", Kind.COUNTER, "Things, with a \\ and a\nbreak")
    made.sample("hedgerow_things_total", labels_text(("a", "b"), ("x", 'quo"te\\n\n')), 3)
    made.family("hedgerow_level", Kind.GAUGE, "Level")
    made.sample("hedgerow_level", "", 0.25)
    made.family("hedgerow_size_bytes", Kind.HISTOGRAM, "Sizes")
    made.histogram("hedgerow_size_bytes", labels_text(("a",), ("x",)), (0.5, 10, 1000), (1, 0, 2, 4), 9000.5)
    made.end()
    return made.take().decode()


@pytest.mark.parametrize(("openmetrics", "read"), [(False, read_text), (True, read_openmetrics)])
def test_every_kind_is_read_back_as_it_was_meant(openmetrics, read):
    families = {family.name: family for family in read(page(openmetrics))}
    assert set(families) == {"hedgerow_things", "hedgerow_level", "hedgerow_size_bytes"}
    counter = families["hedgerow_things"]
    assert counter.type == "counter"
    assert counter.documentation == "Things, with a \\ and a\nbreak"
    assert [(s.name, s.labels, s.value) for s in counter.samples] == [
        ("hedgerow_things_total", {"a": "x", "b": 'quo"te\\n\n'}, 3.0)
    ]
    assert families["hedgerow_level"].samples[0].value == 0.25
    histogram = families["hedgerow_size_bytes"]
    assert histogram.type == "histogram"
    buckets = {float(s.labels["le"]): s.value for s in histogram.samples if s.name.endswith("_bucket")}
    assert buckets == {0.5: 1, 10: 1, 1000: 3, math.inf: 7}
    rest = {s.name: s.value for s in histogram.samples if not s.name.endswith("_bucket")}
    assert rest == {"hedgerow_size_bytes_sum": 9000.5, "hedgerow_size_bytes_count": 7}


def test_only_openmetrics_ends_with_its_mark():
    assert page(openmetrics=True).endswith("# EOF\n")
    assert "EOF" not in page()


@given(VALUES)
def test_no_value_of_a_label_breaks_out(value):
    made = Page()
    made.family("m", Kind.GAUGE, "M")
    made.sample("m", labels_text(("a",), (value,)), 1)
    (family,) = read_text(made.take().decode())
    assert [(s.labels, s.value) for s in family.samples] == [({"a": value}, 1.0)]


def test_lone_surrogates_do_not_break_the_page():
    made = Page()
    made.sample("m", labels_text(("a",), ("\udcff",)), 1)
    assert made.take() == b'm{a="?"} 1\n'


@pytest.mark.parametrize(
    ("value", "written"), [(3, "3"), (0.5, "0.5"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")]
)
def test_numbers(value, written):
    made = Page()
    made.sample("m", "", value)
    assert made.take() == f"m {written}\n".encode()


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;q=0,text/plain", TEXT),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.2", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        ("application/openmetrics-text;q=2", TEXT),
        (";;;,,=", TEXT),
    ],
)
def test_the_format_is_what_the_scraper_prefers(accept, kind):
    assert negotiate(accept) == kind
