"""One count under several names: no bucket loses or invents a value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from octavo_serve.api.histogram import Histogram

BOUNDS = (-1.0, 0.0, 0.5, 1.0, 2.5, 80.0)


@given(st.lists(st.sampled_from((-2.0, -1.0, 0.0, 0.3, 0.5, 1.0, 2.4, 2.5, 79.0, 80.0, 81.0))))
def test_buckets_are_those_of_the_library(values: list[float]) -> None:
    ours, registry = Histogram(BOUNDS), CollectorRegistry()
    theirs = TheirHistogram("x", "x", buckets=BOUNDS, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    (family,) = registry.collect()
    buckets = [sample.value for sample in family.samples if sample.name == "x_bucket"]
    assert ours.cumulative(BOUNDS) == buckets
    assert ours.sum == sum(values)


def test_fewer_buckets_of_the_same_values() -> None:
    histogram = Histogram(BOUNDS)
    for value in (0.2, 0.7, 100.0):
        histogram.observe(value, 2)
    assert histogram.cumulative((0.5, 2.5)) == [2, 4, 6]
    more = Histogram(BOUNDS)
    more.observe(0.2)
    histogram.add(more)
    assert histogram.cumulative((0.5, 2.5)) == [3, 5, 7]
