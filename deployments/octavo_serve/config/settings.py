"""The typed settings of an Octavo application: what `args` in a config file may say."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from octavo.config import EngineConfig, unknown_key
from octavo.errors import ConfigError
from octavo.models.quantization import ROUNDINGS, STORED, parse_rounding
from octavo.routing.policy import PolicyName
from octavo.routing.router import RoutingConfig
from octavo.scaling.policy import Targets
from octavo.text.responses.families import AUTO, NAMES, NONE
from octavo_serve.api.batches.nouns import StoreSettings
from octavo_serve.api.model import Price
from octavo_serve.api.records import RecordSettings
from octavo_serve.api.validation import explain
from octavo_serve.config.access import AccessSettings
from octavo_serve.config.base import Count, Seconds, Settings
from octavo_serve.config.placement import Group, Strategy

LONGEST_NAME = 80
"""Characters of a model's name that go into its deployment's: names of log files hold 255 bytes, and more than that."""


def _visible(name: str) -> str:
    """A name as people see it: line ends and marks of direction would forge a terminal's or a page's lines."""
    hidden = next((character for character in name if not character.isprintable()), None)
    if hidden is not None:
        raise ValueError(f"a name must not hold U+{ord(hidden):04X}, which cannot be seen")
    return name


ModelName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_visible)]

_FIELDS: dict[str, Any] = {
    field.name: (get_type_hints(EngineConfig)[field.name], field.default) for field in dataclasses.fields(EngineConfig)
}
_Strict = create_model("_Strict", __config__=ConfigDict(strict=True), **_FIELDS)
"""`EngineConfig` without conversions: YAML's `yes` is no number of sequences, and a quoted number is a text."""

_TARGETS = Targets()


def _engine(value: object) -> object:
    """Check an engine's settings by themselves: pydantic ignores unknown keys of a nested standard dataclass."""
    if not isinstance(value, dict):
        return value
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    for key in value:
        if key not in names:
            raise ConfigError(unknown_key(str(key), names))
    try:
        config = EngineConfig(**_Strict.model_validate(value).model_dump())
    except ValidationError as error:
        raise ConfigError(explain(error, EngineConfig, "setting")[0]) from None
    if config.quantization not in (None, "gguf", *STORED) and parse_rounding(config.quantization) is None:
        raise ConfigError(f"quantization must be one of {ROUNDINGS}, got {config.quantization!r}")
    return config


Engine = Annotated[EngineConfig, BeforeValidator(_engine)]


class ReplicaRange(Settings):
    """How many shards a model may have; the rest is `octavo.scaling.policy.Targets`, in its words and units.

    Attributes:
        min, max: bounds; 0 lets an idle model give everything back, its next request waits for a shard.
        initial: shards to start with; None is `min`.
        warm: processes kept ready for shards to come on every node with a shard, 100 MB each; see `shard.warm`.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Count
    initial: Annotated[int, Field(ge=0)] | None = None
    warm: Annotated[int, Field(ge=0)] = 1
    utilization: Annotated[float, Field(gt=0, le=1)] = _TARGETS.utilization
    drain_within: Seconds = _TARGETS.drain_within
    kv_utilization: Annotated[float, Field(gt=0, le=1)] = _TARGETS.kv_utilization
    ttft: Seconds = _TARGETS.ttft
    down_after: Seconds = _TARGETS.down_after
    zero_after: Seconds = _TARGETS.zero_after
    stale_after: Seconds = _TARGETS.stale_after

    @property
    def targets(self) -> dict[str, float]:
        """What the autoscaling policy is made with."""
        return self.model_dump(exclude={"min", "max", "initial", "warm"})

    @property
    def first(self) -> int:
        """Shards to start with."""
        return self.min if self.initial is None else self.initial

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if not self.min <= self.first <= self.max:
            raise ValueError(f"min {self.min}, initial {self.first} and max {self.max} must be in this order")
        return self


def _kind(value: object) -> str:
    """Which of the two `replicas` is meant; the names are those of the error messages."""
    return "dict" if isinstance(value, dict | ReplicaRange) else "int"


Replicas = Annotated[
    Annotated[Count, Tag("int")] | Annotated[ReplicaRange, Tag("dict")],
    Discriminator(_kind),
]


class Alias(Settings):
    """Another name of a model.

    Attributes:
        name: what requests say in their `model` field. Several models may have the same alias: it stands for one of
            them then, the same for all requests of a session or user, else at random.
        weight: this model's part of the requests, relative to the others of the same alias.
    """

    name: ModelName
    weight: float = Field(default=1.0, gt=0)


def _alias(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _response_template(name: str) -> str:
    known = [AUTO, NONE, *NAMES]
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"{name!r} is no response template; {hint}")


class AccuracySettings(Settings):
    """What a shard must show before it serves (`octavo.evaluation.gate`; `octavo evaluate` measures the same).

    Attributes:
        max_kl: the most that the mean KL divergence of next-token distributions from the reference's may be, in nats.
        text: a UTF-8 file to measure on, on every machine that shards run on.
        tokens: of the text that are used.
        window: tokens that are read as one sequence.
        reference: a source to compare with, in float32; None means the model's own.
    """

    max_kl: float = Field(ge=0)
    text: str = Field(min_length=1)
    tokens: Annotated[int, Field(ge=2)] = 2048
    window: Annotated[int, Field(ge=4)] = 512
    reference: str | None = None


class PriceSettings(Settings):
    """What a million of a model's tokens cost, in any currency; see `/v1/usage`.

    Attributes:
        prompt: that had to be computed.
        cached: that were found in the prefix cache; None: as `prompt`.
        completion: that were generated.
    """

    prompt: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    cached: Annotated[float, Field(ge=0, le=1e6)] | None = None
    completion: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @property
    def price(self) -> Price:
        """The same as the gateway needs it."""
        return Price(self.prompt, self.prompt if self.cached is None else self.cached, self.completion)


class SamplingDefaults(Settings):
    """Sampling where a request leaves it open; see `octavo.request.SamplingParams`."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=-1, le=2**31)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)


class ModelSettings(Settings):
    """One served model: a Serve deployment of engine shards.

    Attributes:
        name: what requests say in their `model` field.
        aliases: further names, plain or with a weight.
        source: a directory, a hub id, a .gguf file, or package:MODULE/FILE (see `octavo.source`). `octavo serve` finds
            relative paths beside the config file, and so the engine's `rehearsal`, a draft model and the files of
            `accuracy`.
        engine: settings of each shard's engine.
        accuracy: what each shard must show before it serves.
        default_max_tokens: most tokens of a chat's answer where the request does not say; null is what the context
            holds.
        generation_config: "auto" takes the sampling that the model's makers recommend (temperature, top_p, top_k,
            min_p, repetition_penalty) where a request leaves it open; "none" does not.
        override_generation_config: the same five, in place of what the model's files say.
        response_template: how reasoning and calls are told from content in a chat's answers: "auto" is the model's own
            template, or the built-in one of its family; a name is that built-in one; "none" tells nothing.
        lora: adapters that are served beside the model, each by its own name: name: folder (see docs/lora.md); gateways
            and shards read it under this path.
        lora_folders: where adapters may lie that operators load while the server runs; none: nowhere.
        weight_folders: where other weights of the model may lie that operators have it go over to while the server runs
            (see docs/sleep.md); none: nowhere.
        ranker: how a model of text ranks documents: by its "yes_no" to each, or by the angle of its "vectors"; "auto"
            is the former where the source's name has "reranker" in it.
        price: of its tokens, for usage by tenant.
        replicas: shards; a number, or bounds between which their number follows the load.
        tensor_parallel: ranks that share one shard's model, each in a bundle of the shard's own placement group.
        placement_strategy: of that group: STRICT_PACK puts all ranks on one node.
        num_cpus, num_gpus: what Ray reserves per rank when it looks for a place; `engine.threads` says what is used.
        max_ongoing_requests: most requests that one gateway has at one shard, running and waiting; more wait in the
            gateway. Default: `max_num_seqs` with autoscaling, so that a new shard can take those that wait; otherwise
            10,000, which is practically unlimited.
        max_queue_s: seconds that a request may wait before it begins; one that is predicted to wait longer is refused
            with 429, and told when to come again; fewer than four per shard always may (`octavo.routing.admission`).
        max_queued_tokens: of prompts that may wait in a gateway and at the shards, about 40 bytes each in the gateway.
        health_check_period_s, health_check_timeout_s: how often and how long Serve asks a shard for its health.
        graceful_shutdown_timeout_s: how long a shard that leaves may take; its streams have all but the last two
            seconds to end, then they go on at another shard.
    """

    name: ModelName
    aliases: list[Annotated[Alias, BeforeValidator(_alias)]] = Field(default_factory=list)
    source: str = Field(min_length=1)
    engine: Engine = Field(default_factory=EngineConfig)
    accuracy: AccuracySettings | None = None
    default_max_tokens: Count | None = 4096
    generation_config: Literal["auto", "none"] = "auto"
    override_generation_config: SamplingDefaults = Field(default_factory=SamplingDefaults)
    response_template: Annotated[str, AfterValidator(_response_template)] = AUTO
    lora: dict[ModelName, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    lora_folders: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    weight_folders: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    ranker: Literal["auto", "yes_no", "vectors"] = "auto"
    price: PriceSettings = Field(default_factory=PriceSettings)
    replicas: Replicas = 1
    tensor_parallel: Count = 1
    placement_strategy: Strategy = "STRICT_PACK"
    num_cpus: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    num_gpus: float = Field(default=0, ge=0, allow_inf_nan=False)
    max_ongoing_requests: Count | None = None
    max_queue_s: Seconds = 30.0
    max_queued_tokens: Count = 2**22
    health_check_period_s: Seconds = 5.0
    health_check_timeout_s: Seconds = 15.0
    graceful_shutdown_timeout_s: Seconds = 20.0

    @model_validator(mode="after")
    def _ranks_have_a_place(self) -> Self:
        if self.engine.tensor_parallel_size != 1:
            size = self.engine.tensor_parallel_size
            raise ValueError(
                f"engine.tensor_parallel_size is for offline use: say tensor_parallel: {size} beside engine"
            )
        if self.tensor_parallel > 1 and self.accuracy is not None:
            raise ValueError("accuracy is measured on one rank: leave it out, or set tensor_parallel to 1")
        if self.tensor_parallel > 1 and not self.bundle:
            raise ValueError("num_cpus or num_gpus must be above 0 with tensor_parallel, or Ray reserves no place")
        return self

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves per rank."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in asked.items() if amount}

    @property
    def group(self) -> Group:
        """What Ray has to place for one shard."""
        return Group(self.bundle, self.tensor_parallel, self.placement_strategy)

    @property
    def rank_engine(self) -> EngineConfig:
        """What the engine of each rank is started with."""
        return dataclasses.replace(self.engine, tensor_parallel_size=self.tensor_parallel)

    @property
    def fewest_shards(self) -> int:
        """Shards that the model has at all times."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min

    @property
    def first_shards(self) -> int:
        """Shards that the model starts with."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.first

    @property
    def most_shards(self) -> int:
        """Shards that the model has at most."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def most_requests(self) -> int:
        """Requests that one gateway has at one shard."""
        scales = isinstance(self.replicas, ReplicaRange)
        return self.max_ongoing_requests or (self.engine.max_num_seqs if scales else 10_000)

    @property
    def on_demand(self) -> bool:
        """Whether there may be no shard until a request comes."""
        return isinstance(self.replicas, ReplicaRange) and self.replicas.min == 0

    @property
    def defaults(self) -> tuple[object, ...]:
        """What decides about requests that leave something open."""
        sampling = self.default_max_tokens, self.generation_config, self.override_generation_config
        return *sampling, self.response_template, self.ranker

    def same_engine(self, other: ModelSettings) -> bool:
        """Whether shards of one serve the other as they are."""
        return (self.source, self.rank_engine, self.on_demand) == (other.source, other.rank_engine, other.on_demand)


NO_EXPORTER = "gateway.traces needs OpenTelemetry's exporter: pip install 'octavo[otel]'"


class TraceSettings(Settings):
    """Spans of each request, sent to a collector by OTLP over HTTP; see docs/traces.md. Needs the extra `otel`.

    Attributes:
        endpoint: the collector's base URL, such as http://127.0.0.1:4318; None: as OTEL_EXPORTER_OTLP_ENDPOINT says.
        sample: part of the requests that are traced, of those whose caller has not decided it; None: as
            OTEL_TRACES_SAMPLER says, which is all.
        service: what the collector knows the gateways as; None: as OTEL_SERVICE_NAME says, or "octavo".
    """

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = None
    sample: Annotated[float, Field(ge=0, le=1)] | None = None
    service: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class BatchSettings(Settings):
    """Files and batches; see docs/batches.md. All gateways of a folder are to run on one node.

    Attributes:
        folder: of the files, and of a database of everything else, on the disk of the gateways' node.
        file_bytes: of a file that is uploaded.
        owner_bytes: of all files of a key, and of answers that wait for theirs.
        total_bytes: of everybody's.
        lines_per_second: that all gateways together begin at most; what people's requests feel of them grows with it.
            By default 25 for each core of the gateways' node, and no more than 200 in one gateway.
    """

    folder: Annotated[str, Field(min_length=1)]
    file_bytes: Annotated[int, Field(ge=2**10, le=2**40)] = 200 * 2**20
    owner_bytes: Annotated[int, Field(ge=2**10, le=2**44)] = 2**32
    total_bytes: Annotated[int, Field(ge=2**10, le=2**44)] = 2**34
    lines_per_second: Annotated[float, Field(gt=0, le=100_000)] | None = None

    @property
    def store(self) -> StoreSettings:
        """The same, as gateways need it."""
        return StoreSettings(**{**self.model_dump(), "folder": Path(self.folder).expanduser()})


class GatewaySettings(Settings):
    """The HTTP and handle ingress.

    Attributes:
        replicas: gateway processes.
        num_cpus: what Ray reserves per gateway.
        max_ongoing_requests: requests in one gateway at once.
        max_body_bytes: a larger body is refused with 413 before it is read to its end; by default what the longest
            context of the models needs (see `octavo_serve.api.bounds`).
        max_prompts: prompts in one completion request.
        max_n: `n`, `best_of` and `beam_width` of one request.
        failover_timeout_s: how long a request waits for a shard when there is none, new or with its shard gone.
        max_failovers: shards that may die under one request before it is given up.
        shard_silence_s: without a sign of life for so long a shard counts as dead; shards give one every second.
        loading_wait_s: how long a request for a model that is still loading waits before it is answered with 503.
        responses_store: file of the responses that clients let the server store (see docs/responses.md), on the disk of
            a gateway's node; None: a temporary file, which ends with the gateway, or where there are several with Ray.
        responses_store_bytes: of all stored responses; those that were not used for longest go first.
        responses_ttl_s: seconds after its last use after which a response is gone.
        traces: of requests; None makes none.
        batches: files and batches; None: there are none.
        explain_bytes: what is remembered of the last requests, to say why they took so long (see docs/explain.md); 0:
            nothing.
    """

    replicas: Count = 1
    num_cpus: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    max_ongoing_requests: Count = 10_000
    max_body_bytes: Count | None = None
    max_prompts: Count = 1024
    max_n: Annotated[int, Field(ge=1, le=128)] = 128
    failover_timeout_s: Seconds = 120.0
    max_failovers: Annotated[int, Field(ge=0)] = 5
    shard_silence_s: Seconds = 10.0
    loading_wait_s: float = Field(default=30.0, ge=0)
    responses_store: Annotated[str, Field(min_length=1)] | None = None
    responses_store_bytes: Annotated[int, Field(ge=2**20, le=2**40)] = 2**28
    responses_ttl_s: Annotated[float, Field(gt=0, le=30 * 86400)] = 30 * 86400.0
    traces: TraceSettings | None = None
    batches: BatchSettings | None = None
    explain_bytes: Annotated[int, Field(ge=0, le=2**34)] = 2**25

    def records(self, shared: Callable[[], Path]) -> RecordSettings:
        """Where responses are stored, and for how long.

        Args:
            shared: names a file that all gateways of a node use, where they are several and none is named.
        """
        path = None if self.responses_store is None else Path(self.responses_store).expanduser()
        if path is None and self.replicas > 1:
            path = shared()
        return RecordSettings(path, self.responses_store_bytes, self.responses_ttl_s)


class RouterSettings(Settings):
    """How requests find a shard (see `octavo.routing.policy`, docs/routing.md).

    Attributes:
        policy: prefix_affinity, least_loaded, round_robin or session.
        stream_weight: seconds of waiting for a first token that one second of delay to one running stream is worth.
        stale_after_s: a shard that was not heard for so long is judged by what was sent there alone.
        max_blocks_per_shard: block hashes a gateway keeps per shard; about 80 bytes each.
        log_decisions: log every decision with all numbers of the formula.
        apart_weight: a prompt may be computed on one shard and its stream run on another, which fetches the blocks
            (docs/kv_sharing.md): seconds of waiting for a first token that a second is worth for which a stream is held
            up. 0: it may not. For models with engine.share_kv_cache and policy prefix_affinity.
        report_s: how often shards tell routers their load.
    """

    policy: PolicyName = "prefix_affinity"
    stream_weight: Annotated[float, Field(ge=0)] = 0.01
    stale_after_s: Seconds = 2.0
    max_blocks_per_shard: Count = 500_000
    log_decisions: bool = False
    apart_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0
    report_s: Seconds = 0.05

    @model_validator(mode="after")
    def _policy_weighs(self) -> Self:
        if self.apart_weight and self.policy != "prefix_affinity":
            raise ValueError(f"apart_weight is for policy prefix_affinity, not {self.policy}: leave one of them out")
        return self

    @property
    def config(self) -> RoutingConfig:
        """What a gateway's routers go by."""
        return RoutingConfig(**self.model_dump(exclude={"report_s"}))


class AppSettings(AccessSettings):
    """Everything under `args` of the application in a config file."""

    models: list[ModelSettings] = Field(min_length=1)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    router: RouterSettings = Field(default_factory=RouterSettings)

    @model_validator(mode="after")
    def _somebody_shares(self) -> Self:
        if self.router.apart_weight and not any(model.engine.share_kv_cache for model in self.models):
            raise ValueError("router.apart_weight needs a model with engine.share_kv_cache: set it, or leave this out")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}: give each its own name")
        for model in self.models:
            aliases = [alias.name for alias in model.aliases]
            for alias in aliases:
                if alias in names or aliases.count(alias) > 1:
                    raise ValueError(f"{alias!r} is a model's name or twice an alias of {model.name!r}")
        self._check_adapters({*names, *self.aliases})
        return self

    def _check_adapters(self, taken: set[str]) -> None:
        for model in self.models:
            for name in model.lora:
                if name in taken:
                    raise ValueError(f"the adapter {name!r} of {model.name!r} has the name of something else")
                taken.add(name)

    def sealed(self) -> AppSettings:
        """The same settings without a secret in them; see `ApiKey.sealed`.

        Raises:
            ConfigError: two holders have one key, or as there.
        """
        keys, holders = [key.sealed() for key in self.api_keys], dict[str, str]()
        for key in keys:
            if key.sha256 is not None and (other := holders.setdefault(key.sha256, key.name)) != key.name:
                raise ConfigError(f"{other!r} and {key.name!r} have the same key: give each a key of its own")
        return self.model_copy(update={"api_keys": keys})

    def as_args(self) -> dict[str, Any]:
        """Plain values that `load_settings` makes the same settings of."""
        return self.model_dump(mode="json", exclude=None if self.api_keys else {"api_keys"})

    @property
    def aliases(self) -> dict[str, dict[str, float]]:
        """Alias -> the models it stands for and their weights."""
        found: dict[str, dict[str, float]] = {}
        for model in self.models:
            for alias in model.aliases:
                found.setdefault(alias.name, {})[model.name] = alias.weight
        return found


def deployment_name(model: str) -> str:
    """The deployment of a model's shards; no two models have the same.

    Its name follows "shard-". Where Serve or a file name could not hold it, what they can hold of it and a hash of all
    of it follow "shards-" instead.
    """
    if len(model) <= LONGEST_NAME and all(_plain(c) for c in model):
        return f"shard-{model}"
    readable = "".join(c if _plain(c) else "-" for c in model[:LONGEST_NAME])
    return f"shards-{readable}-{blake2b(model.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def _plain(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in "-_.")


def load_settings(args: dict[str, Any]) -> AppSettings:
    """Validate the `args` of an application.

    Raises:
        ConfigError: naming the key that is wrong, and for an unknown key the nearest valid one.
    """
    try:
        return AppSettings.model_validate(args)
    except ValidationError as error:
        raise ConfigError(explain(error, AppSettings, "setting")[0]) from None
