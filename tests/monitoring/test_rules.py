"""The alerts fire when they should and not before, as Prometheus' own `promtool test rules` sees it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring" / "prometheus" / "rules" / "octavo.yaml"

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")

ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]

OF_MODEL = '{instance="a",job="octavo",model_name="m"}'
OF_SHARD = '{instance="a",job="octavo",model_name="m",engine="s"}'


def of_model(**labels: str) -> str:
    return OF_MODEL[:-1] + "".join(f',{name}="{value}"' for name, value in labels.items()) + "}"


def late(share: float) -> dict[str, str]:
    """A request a second, of which this share waits longer than 2.5 s for its first token."""
    name = "vllm:time_to_first_token_seconds"
    return {f"{name}_count{OF_MODEL}": "0+60x500",
            f"{name}_bucket{of_model(le='2.5')}": f"0+{60 * (1 - share):g}x500"}  # fmt: skip


Series = dict[str, str]
"""Values a minute apart, as promtool writes them: `0x5` is six zeros, `0+60x500` grows by 60 in each minute."""

CASES: list[tuple[str, Series, int | None, int]] = [
    ("OctavoDown", {'up{instance="a",job="octavo"}': "1x4 0x20"}, 7, 3),
    ("OctavoModelFailed", {f"octavo_model_status{of_model(status='failed')}": "0x4 1x20"}, 7, 3),
    ("OctavoNoShardReady", {f"octavo_shards{OF_MODEL}": "1x4 0x20", f"octavo_shards_least{OF_MODEL}": "1x30"}, 8, 5),
    ("OctavoNoShardReady", {f"octavo_shards{OF_MODEL}": "0x30", f"octavo_shards_least{OF_MODEL}": "0x30"}, None, 20),
    ("OctavoNoShardReady", {f"octavo_shards{OF_MODEL}": "0x30", f"octavo_shards_least{OF_MODEL}": "1x30",
                            f"octavo_model_status{of_model(status='asleep')}": "1x30"}, None, 20),
    ("OctavoModelDegraded", {f"octavo_shards{OF_MODEL}": "2x4 1x20", f"octavo_shards_wanted{OF_MODEL}": "2x30"}, 11, 8),
    ("OctavoFailovers", {f"octavo_stream_moves_total{of_model(reason='lost')}": "0x4 3x30"}, 6, 3),
    ("OctavoFailovers", {f"octavo_stream_moves_total{of_model(reason='left')}": "0x4 3x30"}, None, 6),
    ("OctavoServerErrors", {'octavo_request_errors_total{instance="a",status="500",code=""}': "0+6x30",
                            f"vllm:e2e_request_latency_seconds_count{OF_MODEL}": "0+60x30"}, 12, 2),
    ("OctavoServerErrors", {'octavo_request_errors_total{instance="a",status="500",code=""}': "0+1x30",
                            f"vllm:e2e_request_latency_seconds_count{OF_MODEL}": "0+60x30"}, None, 20),
    ("OctavoFirstTokensLate", late(0.2), 400, 0),
    ("OctavoFirstTokensLate", late(0.08), 400, 0),
    ("OctavoFirstTokensLate", late(0.02), None, 400),
    ("OctavoQueueLong", {f"octavo_queue_seconds{OF_MODEL}": "1x4 20x20",
                         f"octavo_queue_limit_seconds{OF_MODEL}": "30x30"}, 8, 5),
    ("OctavoRefusing", {f"octavo_refused_requests_total{of_model(cause='queue')}": "0x4 0+5x30"}, 9, 4),
    ("OctavoCacheFull", {f"vllm:kv_cache_usage_perc{OF_SHARD}": "0.99x40",
                         f"vllm:num_preemptions_total{OF_SHARD}": "0+6x40"}, 10, 4),
    ("OctavoCacheFull", {f"vllm:kv_cache_usage_perc{OF_SHARD}": "0.99x40",
                         f"vllm:num_preemptions_total{OF_SHARD}": "0x40"}, None, 20),
    ("OctavoGatewayLate", {'octavo_gateway_lateness_seconds{instance="a"}': "0x4 0.2x20"}, 7, 3),
    ("OctavoAtMostShards", {f"octavo_shards_wanted{OF_MODEL}": "4x40", f"octavo_shards_most{OF_MODEL}": "4x40",
                            f"octavo_shards_least{OF_MODEL}": "1x40", f"octavo_queue_seconds{OF_MODEL}": "10x40",
                            f"octavo_queue_limit_seconds{OF_MODEL}": "30x40"}, 12, 8),
    ("OctavoRoutingBlind", {f"octavo_router_stale{OF_SHARD}": "0x4 1x20"}, 7, 3),
    ("OctavoPredictionsWrong", {f"octavo_shard_step_predicted_seconds_total{OF_SHARD}": "0+20x60",
                                f"octavo_shard_step_seconds_total{OF_SHARD}": "0+60x60"}, 40, 5),
    ("OctavoPredictionsWrong", {f"octavo_shard_step_predicted_seconds_total{OF_SHARD}": "0+50x60",
                                f"octavo_shard_step_seconds_total{OF_SHARD}": "0+60x60"}, None, 40),
]  # fmt: skip
"""Alert, what is measured, a minute in which it fires (None: it never does), a minute in which it does not."""


def firing(alert: str, minute: int, count: int) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": count}]}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    tests = []
    for alert, series, fires, quiet in CASES:
        expected = [firing(alert, quiet, 0), *([] if fires is None else [firing(alert, fires, 1)])]
        given = [{"series": name, "values": values} for name, values in series.items()]
        tests.append({"interval": "1m", "input_series": given, "promql_expr_test": expected})
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires() -> None:
    assert {alert["alert"] for alert in ALERTS} == {case[0] for case in CASES if case[2] is not None}


def test_the_configuration_is_valid() -> None:
    config = RULES.parents[1] / "prometheus.yaml"
    done = subprocess.run([PROMTOOL, "check", "config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = [line.lstrip("# ").lower() for line in (ROOT / page).read_text().splitlines() if line.startswith("#")]
    assert anchor == alert["alert"].lower()
    assert anchor in headings
    assert {"summary", "description"} <= alert["annotations"].keys()
