"""How many shards recorded requests need, of the machine that they were recorded on or of one that is only planned.

A planned machine's steps take what the roofline says, which no engine reaches, in the work of the recorded steps.
"""

from __future__ import annotations

from dataclasses import replace

from octavo.planning.plan import Fit
from octavo.planning.report import Sized
from octavo.planning.roofline import Roofline
from octavo.rehearsal.traffic import Traffic, fit
from octavo.rehearsal.whatif import Measures, Rerun, Slo, changed, measures
from octavo.routing.router import RoutingConfig

MOST = 256
"""Shards that are tried."""


def as_recorded(traffic: Traffic, slo: Slo, share: float) -> Sized:
    """Shards of the recorded kind; `share` of the requests is to meet the SLO."""
    return _sized(replace(traffic, machines=traffic.machines[:1]), "as recorded", 1, slo, share)


def on_machine(traffic: Traffic, plan: Fit, roofline: Roofline, slo: Slo, share: float) -> Sized:
    """Shards of a planned kind; arguments as of `as_recorded`."""
    first = traffic.machines[0]
    work = [step for machine in traffic.machines for step, _ in machine.steps]
    cost = fit([(step, roofline.step_seconds(step.tokens, step.sequences, step.attended)) for step in work])
    blocks = plan.memory.kv_tokens // first.config.block_size
    planned = replace(first, name=plan.machine, blocks=blocks, cost=cost, pause=0.0)
    return _sized(replace(traffic, machines=[planned]), plan.machine, plan.ranks, slo, share)


def _sized(traffic: Traffic, name: str, devices: int, slo: Slo, share: float) -> Sized:
    few, many = 0, 1
    found = _with_shards(traffic, many, slo)
    while found.good < share and many < MOST:
        few, many = many, 2 * many
        found = _with_shards(traffic, many, slo)
    enough = found.good >= share
    while enough and many - few > 1:
        middle = (few + many) // 2
        if (tried := _with_shards(traffic, middle, slo)).good >= share:
            many, found = middle, tried
        else:
            few = middle
    return Sized(name, devices, many if enough else None, found.good, found.ttft.get(90, 0.0), found.itl.get(90, 0.0))


def _with_shards(traffic: Traffic, shards: int, slo: Slo) -> Measures:
    routing = traffic.routing or RoutingConfig()
    return measures(Rerun(traffic, changed(traffic, {}), routing, shards).outcome(), slo)
