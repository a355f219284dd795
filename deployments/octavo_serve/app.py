"""Builds the Serve application: binds every deployment, from one typed config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from octavo_serve.config.placement import Group
from octavo_serve.config.settings import (
    AppSettings,
    ModelSettings,
    ReplicaRange,
    deployment_name,
    load_settings,
)
from octavo_serve.controller.autoscaling import POLICY, REPORT_SECONDS
from octavo_serve.gateway.gateway import Gateway
from octavo_serve.ray_private import versioned
from octavo_serve.shard.shard import Shard
from octavo_serve.shard.sharing import GIVING_SECONDS

HAND_OVER_SECONDS = 2.0
"""Seconds before the end of `graceful_shutdown_timeout_s` at which a leaving shard hands its streams over. Serve uses
up to 0.5 s of it before it tells the shard."""

GATEWAY_CHECK_SECONDS = 1.0
"""Until Serve notices at the latest that a gateway has died; nobody is served before another has started."""

MAX_START_ATTEMPTS = 2
"""Serve's default is twenty tries, but a missing model stays missing."""


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from the `args` of a config file (see `octavo_serve.config.settings.AppSettings`).

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load_settings(args).sealed()  # without keys in clear text: Serve stores its arguments and shows them
    shards = {model.name: _shard(model, settings) for model in settings.models}
    return _gateway(settings, shards)


def _shard(model: ModelSettings, settings: AppSettings) -> serve.Application:
    deployment = serve.deployment(
        name=deployment_name(model.name),
        **_replicas(model, settings),
        **_placement(model),
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
        max_ongoing_requests=model.most_requests,
        health_check_period_s=model.health_check_period_s,
        health_check_timeout_s=model.health_check_timeout_s,
        graceful_shutdown_timeout_s=model.graceful_shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=MAX_START_ATTEMPTS,
        user_config={"patience": max(0.0, model.graceful_shutdown_timeout_s - _hand_over_seconds(model))},
    )(Shard)
    arguments = (model.source, model.rank_engine, settings.router.report_s, model.accuracy)
    warm = model.replicas.warm if isinstance(model.replicas, ReplicaRange) else 0
    return versioned(deployment, *arguments).bind(model.name, *arguments, warm)


def _hand_over_seconds(model: ModelSettings) -> float:
    return HAND_OVER_SECONDS + (GIVING_SECONDS if model.engine.share_kv_cache else 0.0)


def _placement(model: ModelSettings) -> dict[str, Any]:
    """Settings for a placement group per shard if it has several ranks; the shard itself uses the first bundle."""
    if model.tensor_parallel == 1:
        return {}
    bundles = [model.bundle] * model.tensor_parallel
    return {"placement_group_bundles": bundles, "placement_group_strategy": model.placement_strategy}


def _replicas(model: ModelSettings, settings: AppSettings) -> dict[str, Any]:
    """Serve's settings for the number of shards. Our policy has its own windows and delays, so Serve's are off."""
    replicas = model.replicas
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    kept = [asdict(group) for group in _kept(model, settings)]
    arguments = {"group": asdict(model.group), "kept": kept, "record": model.engine.record, **replicas.targets}
    policy = AutoscalingPolicy(policy_function=POLICY, policy_kwargs=arguments)  # type: ignore[no-untyped-call]
    config = AutoscalingConfig(
        min_replicas=replicas.min,
        max_replicas=replicas.max,
        initial_replicas=replicas.initial,
        metrics_interval_s=REPORT_SECONDS,
        look_back_period_s=2 * REPORT_SECONDS,
        aggregation_function="max",
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        policy=policy,
    )
    return {"autoscaling_config": config}


def _kept(model: ModelSettings, settings: AppSettings) -> list[Group]:
    """Placement groups that a model must leave room for: the other models' fewest shards, and the gateways."""
    gateway = Group({"CPU": settings.gateway.num_cpus}, 1, "PACK")
    others = [other.group for other in settings.models if other is not model for _ in range(other.fewest_shards)]
    return [gateway] * settings.gateway.replicas + others


def _gateway(settings: AppSettings, shards: dict[str, serve.Application]) -> serve.Application:
    deployment = serve.deployment(
        name="gateway",
        num_replicas=settings.gateway.replicas,
        ray_actor_options={"num_cpus": settings.gateway.num_cpus},
        max_ongoing_requests=settings.gateway.max_ongoing_requests,
        health_check_period_s=GATEWAY_CHECK_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=MAX_START_ATTEMPTS,
        user_config=settings.as_args(),
    )(serve.ingress()(Gateway))
    return versioned(deployment).bind(shards)
