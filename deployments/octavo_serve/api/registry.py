"""The models of one gateway: what they are called, and whether they can answer now."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, TypedDict, Unpack

from octavo.cost_model import Cost
from octavo.errors import BadRequest, ModelNotReady, UnknownModel
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.adapters import AdapterEntry, Adapters, some_names
from octavo_serve.api.bounds import UNKNOWN_CONTEXT
from octavo_serve.api.model import FREE, NO_DEFAULTS, Defaults, Keeper, ModelClient, Price, ServedModel, unmeasured
from octavo_serve.wire.messages import ModelInfo

RETRY_AFTER = 5.0
"""Seconds until a request to a loading model should try again, as long as it has not loaded for longer than that."""

MAX_WAITING_TOKENS = 2**22
"""Of prompts that wait for one model that loads, about: they are texts, of 4 to 16 bytes for each token."""

Status = Literal["ready", "loading", "failed", "asleep"]


class Facts(TypedDict, total=False):
    """The fields of a `ModelEntry` that change while the gateway runs."""

    tokenizer: Tokenizer | None
    info: ModelInfo | None
    shards: int
    tokenizer_error: str
    shard_error: str
    no_room: str
    note: str
    defaults: Defaults
    price: Price
    asleep: int
    weight_folders: tuple[str, ...]


@dataclass(slots=True, eq=False)
class ModelEntry:
    """One model and what is known of it. Fields are changed through `update` alone.

    Attributes:
        created: seconds since 1970.
        on_demand: a request may come while there is no shard, and brings one up.
        tokenizer, info: None until they are known.
        defaults: sampling parameters of requests that leave them out.
        shards: how many answer.
        tokenizer_error: why the tokenizer cannot be loaded.
        shard_error: why no shard could be started.
        no_room: why the cluster cannot hold all of its shards.
        note: what the shards that do not answer yet are waiting for.
        price: of its tokens, and those of its adapters.
        cost: its shards' cost model, as they say now.
        asleep: at which level it sleeps, or is about to; 0 while it is awake.
        weight_folders: where other weights may lie.
        keeper: who changes that; None: nobody.
    """

    name: str
    created: int
    client: ModelClient
    on_demand: bool = False
    tokenizer: Tokenizer | None = None
    info: ModelInfo | None = None
    shards: int = 0
    tokenizer_error: str = ""
    shard_error: str = ""
    no_room: str = ""
    note: str = ""
    defaults: Defaults = NO_DEFAULTS
    price: Price = FREE
    cost: Callable[[], Cost] = unmeasured
    asleep: int = 0
    weight_folders: tuple[str, ...] = ()
    keeper: Keeper | None = None
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _loading_since: float | None = None  # monotonic
    _took: float | None = None  # seconds, the last time that it loaded
    _waiting_tokens: int = 0

    def __post_init__(self) -> None:
        self.update()

    @property
    def status(self) -> Status:
        if self.tokenizer_error or ((self.shard_error or self.no_room) and not self.shards):
            return "failed"
        if self.asleep:
            return "asleep"
        answers = self.on_demand or (self.info and self.shards)
        return "ready" if self.tokenizer and answers else "loading"

    @property
    def reason(self) -> str | None:
        """Why the model is not ready, or has fewer shards than it should."""
        if self.status == "failed":
            return self.tokenizer_error or self.shard_error or self.no_room
        if self.status == "ready":
            return self.no_room or None
        if self.status == "asleep":
            return f"level {self.asleep}; POST /wake_up wakes it"
        return self.note or ("its shards are starting" if self.tokenizer else "its tokenizer is being loaded")

    def may(self, tasks: Collection[str]) -> bool:
        """Whether the model does one of these, as far as is known."""
        return not tasks or self.info is None or any(task in self.info.tasks for task in tasks)

    def update(self, **facts: Unpack[Facts]) -> None:
        """Set these fields, and wake the requests that wait for the model if it is ready or has failed now."""
        for name, value in facts.items():
            setattr(self, name, value)
        now = time.monotonic()
        if self.status == "loading":
            self._loading_since = now if self._loading_since is None else self._loading_since
            self._settled.clear()
            return
        if self.status == "ready" and self._loading_since is not None:
            self._took = now - self._loading_since
        self._loading_since = None
        self._settled.set()

    @property
    def seconds_left(self) -> float | None:
        """Until the model will have loaded, as the last time; None before it has once, or where it takes longer."""
        if self._took is None or self._loading_since is None:
            return None
        left = self._took - (time.monotonic() - self._loading_since)
        return left if left > 0 else None

    @property
    def _again(self) -> float:
        """When to come again while it loads: nobody knows better than that it takes as long again as it has."""
        loading = 0.0 if self._loading_since is None else time.monotonic() - self._loading_since
        return self.seconds_left or max(RETRY_AFTER, loading)

    async def served(self, wait: float, explain: bool = True, tokens: int = 0) -> ServedModel:
        """The model once it is ready, which a request may wait for; at once an error where that would be for nothing.

        Args:
            explain: an error says why, which may name files of this machine.
            tokens: of the request's prompts, about; only so many wait.

        Raises:
            ModelNotReady: it has failed, or still loads after `wait` seconds, or too much waits for it.
        """
        room = not self._waiting_tokens or self._waiting_tokens + tokens <= MAX_WAITING_TOKENS
        if self.status == "loading" and (self.seconds_left or 0.0) <= wait and room:
            self._waiting_tokens += tokens
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._settled.wait()
            finally:
                self._waiting_tokens -= tokens
        if self.tokenizer is not None and self.status == "ready":
            known = self.name, self.created, self.tokenizer, self.client, self.defaults
            return ServedModel(*known, price=self.price, cost=self.cost)
        if self.status == "failed":
            why = f": {self.reason}" if explain else "; /health tells operators why"
            raise ModelNotReady(f"model {self.name!r} has failed{why}")
        if self.status == "asleep":
            why = "is asleep until an operator wakes it"
            raise ModelNotReady(f"model {self.name!r} {why}; try again later", RETRY_AFTER)
        why = f" ({self.reason})" if explain else ""
        raise ModelNotReady(f"model {self.name!r} is still loading{why}; try again later", self._again)

    def card(self, explain: bool = True) -> dict[str, object]:
        """The model's entry in /v1/models; where it does not `explain`, without its path and why it has failed."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "octavo",
            "root": self.info.hash_name if self.info and explain else None,
            "parent": None,
            "max_model_len": self.info.max_model_len if self.info else None,
            "tasks": list(self.info.tasks) if self.info else None,
            "status": self.status,
            "reason": self.reason if explain else None,
        }


class Registry:
    """Entries by name, and aliases, each of which stands for one or more models with weights.

    Attributes:
        wait: seconds a request may wait for a model that loads.
        explain: errors say why a model does not answer.
        adapters: of the models.
    """

    def __init__(self, entries: Iterable[ModelEntry] = (), wait: float = 0.0) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.aliases: dict[str, dict[str, float]] = {}
        self.wait = wait
        self.explain = True
        self.adapters = Adapters()

    def configure(
        self, entries: Mapping[str, ModelEntry], aliases: Mapping[str, dict[str, float]], wait: float, explain: bool
    ) -> None:
        """Serve these models and aliases from now on; requests that wait for a model go on waiting for it."""
        self.entries, self.aliases, self.wait, self.explain = dict(entries), dict(aliases), wait, explain

    @property
    def longest_context(self) -> int:
        """Tokens, of all models; one that is not known yet is taken for a long one."""
        return max((e.info.max_model_len if e.info else UNKNOWN_CONTEXT for e in self.entries.values()), default=0)

    @property
    def can_answer(self) -> bool:
        """Whether any model is ready."""
        return any(entry.status == "ready" for entry in self.entries.values())

    async def served(
        self,
        name: str | None,
        session: str = "",
        before_waiting: Callable[[], object] | None = None,
        tokens: int = 0,
        tasks: Collection[str] = (),
    ) -> ServedModel:
        """The model a request gets.

        Args:
            name: of a model, an alias or an adapter; None is fine where there is only one model that can do it.
            session: requests with the same one get the same model of an alias; "" is every request for itself.
            before_waiting: called first where the model is still loading.
            tokens: of the request's prompts, about.
            tasks: the model is to do one of these; any, if there are none.

        Raises:
            UnknownModel: there is none; the message lists those there are.
            ModelNotReady: it has failed, does not come up in time, or too much waits for it.
        """
        entry, adapted = self.find(name, session, tasks), self._adapted(name)
        if before_waiting is not None and entry.status == "loading":
            before_waiting()
        served = await entry.served(self.wait, self.explain, tokens)
        if adapted is not None:  # even if it has been unloaded while the request waited: the model is another
            served.name, served.adapter = adapted.name, adapted.ready(self.explain)
        return served

    def find(self, name: str | None, session: str = "", tasks: Collection[str] = ()) -> ModelEntry:
        """The entry a request gets, ready or not; of an adapter its model's; as `served`."""
        if name is None:
            able = [entry for entry in self.entries.values() if entry.may(tasks)] or [*self.entries.values()]
            if len(able) == 1:
                return able[0]
            raise BadRequest(f"model is required; served here: {self._names()}", "model")
        if name in self.entries:
            return self.entries[name]
        if (adapted := self._adapted(name)) is not None:
            return self.entries[adapted.parent]
        if weights := self._alive(name):
            return self.entries[choose(weights, session or secrets.token_hex(8))]
        raise UnknownModel(f"model {name!r:.80} does not exist; served here: {self._names()}", "model")

    def writes(self, name: str | None) -> bool:
        """Whether the model of this name writes text, or any where there is no name, as far as is known."""
        try:
            return self.find(name, tasks=("generate",)).may(("generate",))
        except BadRequest:
            return True

    def cards(self, explain: bool = True) -> list[dict[str, object]]:
        """/v1/models: every model, then every alias, then every adapter."""
        models = [entry.card(explain) for entry in self.entries.values()]
        return models + [self.card(name, explain) for name in (*self.aliases, *self.adapters.entries)]

    def card(self, name: str, explain: bool = True) -> dict[str, object]:
        """One entry of /v1/models; an alias shows the model with the largest weight and says what it stands for.

        Raises:
            UnknownModel: there is none.
        """
        if (adapted := self._adapted(name)) is not None:
            return adapted.card(self.entries[adapted.parent].card(explain), explain)
        if name not in self.aliases:
            return self.find(name).card(explain)
        weights = self.aliases[name]
        return self.entries[max(weights, key=weights.__getitem__)].card(explain) | {"id": name, "alias_of": weights}

    def _adapted(self, name: str | None) -> AdapterEntry | None:
        """The adapter of this name; models and aliases that have come since it was loaded go before it."""
        if name is None or name in self.entries or name in self.aliases:
            return None
        return self.adapters.entries.get(name)

    def _names(self) -> str:
        return some_names([*self.entries, *self.aliases, *self.adapters.entries])

    def _alive(self, alias: str) -> Mapping[str, float]:
        """The alias's models that are ready; if none is, those that have not failed; if all have, all."""
        weights = self.aliases.get(alias, {})
        for wanted in ({"ready"}, {"loading"}):
            found = {name: weight for name, weight in weights.items() if self.entries[name].status in wanted}
            if found:
                return found
        return weights


def choose(weights: Mapping[str, float], key: str) -> str:
    """One of the names, in proportion to their weights over many keys and always the same for one key.

    Rendezvous hashing with weights (Schindelhauer and Schomaker, 2005): when a name goes, only its keys move.
    """

    def score(name: str) -> float:
        digest = blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
        return -weights[name] / math.log((int.from_bytes(digest, "little") + 1) / (2**64 + 1))

    return max(weights, key=score)
