"""A fleet is as large as recorded requests need, and no larger."""

from __future__ import annotations

from octavo.rehearsal.sizing import as_recorded
from octavo.rehearsal.traffic import read_traffic
from octavo.rehearsal.whatif import Rerun, Slo, changed, measures
from octavo.routing.router import RoutingConfig


def test_the_fewest_shards_that_are_enough(record):
    traffic, slo = read_traffic(record(max_num_seqs=2)), Slo(ttft=0.3)
    found = as_recorded(traffic, slo, 0.9)
    assert found.shards is not None
    assert found.shards > 1
    fewer = Rerun(traffic, changed(traffic, {}), RoutingConfig(), found.shards - 1).outcome()
    assert measures(fewer, slo).good < 0.9 <= found.good


def test_what_no_number_of_shards_can_do(record, monkeypatch):
    monkeypatch.setattr("octavo.rehearsal.sizing.MOST", 2)
    assert as_recorded(read_traffic(record()), Slo(ttft=1e-3), 0.9).shards is None
