"""`LLM`: the engine without threads, asyncio or Ray, for offline work."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from octavo.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.freed import give_back
from octavo.engine.llm_beams import BeamSearchOutput, BeamSearchParams, beam_output
from octavo.engine.llm_pooling import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PooledWork,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    pairs,
)
from octavo.errors import BadRequest, ConfigError, ModelError, OctavoError
from octavo.models.adapters import find_adapter
from octavo.models.packed_cache import version
from octavo.pooled import check_prompt, cosine, score_task, truncated
from octavo.pooling import Pooling, Task
from octavo.request import (
    MAX_PREDICTED,
    Adapter,
    Request,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    SequenceUpdate,
)
from octavo.source import resolve_source
from octavo.text.chat import render_chat
from octavo.text.grammars.constrained import constrained, is_constrained
from octavo.text.output import SequenceText, choose_best, fill_decoded
from octavo.text.recommended import recommended_sampling
from octavo.text.tokenizer import Tokenizer, load_tokenizer

Message = dict[str, Any]
T = TypeVar("T")


Prompt = str | list[int] | dict[str, list[int]]
"""A text, token ids, or `{"prompt_token_ids": [...]}` as vLLM spells them."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter for `LLM.generate`, in vLLM's words.

    Attributes:
        lora_int_id: means nothing here: an adapter is what its files hold when `generate` is called.
        lora_path: of its folder.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str

    def adapter(self) -> Adapter:
        """With the hash of its files now.

        Raises:
            ModelError: there are none.
        """
        return find_adapter(self.lora_name, Path(self.lora_path))


class LLM:
    """A model to generate text or make vectors with, in this process.

    Args:
        model: a directory, a .gguf file, `package:MODULE/FILE` or a hub id (see `octavo.source`).
        progress: show a bar while the weights load, and what runs them.
        settings: fields of `EngineConfig`: dtype, quantization, max_model_len, max_num_seqs, kv_cache_bytes, threads,
            tensor_parallel_size, ...

    Attributes:
        is_sleeping: between `sleep` and `wake_up`.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: a setting is unknown or wrong.
    """

    def __init__(self, model: str, *, progress: bool = True, **settings: Any) -> None:
        config = EngineConfig.from_settings(settings)
        if config.share_kv_cache:
            raise ConfigError("share_kv_cache is between the shards of a server: leave it off")
        source = resolve_source(str(model), config.runner)
        self.tokenizer: Tokenizer = load_tokenizer(source)
        self._recommended = recommended_sampling(source)
        self.engine = Engine.load(source, config, self.tokenizer, progress=progress)
        self._loaded = source, config, version(source)
        self.is_sleeping = False
        self._ids = itertools.count()
        if progress:
            tqdm.write(f"Engine ready: {source.name}: {self.engine.executor}", file=sys.stderr)

    def __repr__(self) -> str:
        limits, pool = self.engine.limits, self.engine.pool
        return (
            f"LLM({limits.name!r}, {self.engine.executor}, max_model_len={limits.max_model_len}, "
            f"max_num_seqs={self.engine.config.max_num_seqs}, kv_blocks={pool.num_blocks} of {pool.block_size} tokens)"
        )

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers recommend (see `octavo.text.recommended`), else the defaults of `SamplingParams`."""
        recommended: dict[str, Any] = self._recommended
        return SamplingParams(**recommended)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        prediction: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Generate for all prompts at once.

        Args:
            prompts: strings, lists of token ids, or `{"prompt_token_ids": [...]}`; one or many.
            sampling_params: one for all, or one per prompt; `get_default_sampling_params` when None.
            use_tqdm: show a progress bar with tokens per second.
            priority: one per prompt; lower runs first.
            lora_request: the adapter of all prompts, or one or None per prompt.
            prediction: what much of the output will be, of all prompts or one per prompt; it changes nothing but how
                fast that comes (docs/speculation.md).

        Returns:
            One output per prompt, in the order of the prompts.

        Raises:
            BadRequest: a prompt or a parameter is wrong; nothing has been generated then.
            ModelError: there is no such adapter. One that does not fit the model ends its requests with "error".
        """
        inputs = [self._tokens(prompt) for prompt in _as_list(prompts)]
        params = _per_prompt(sampling_params or self.get_default_sampling_params(), len(inputs), "sampling_params")
        priorities = _per_prompt(priority or 0, len(inputs), "priority")
        wanted = list(_per_prompt(lora_request, len(inputs), "lora_request"))
        hoped: Iterable[str] = _per_prompt(prediction, len(inputs), "prediction")
        adapters = {each: each.adapter() for each in dict.fromkeys(wanted) if each is not None}
        work = [
            _Work(self._request(ids, p, rank, adapters.get(lora) if lora else None, hope), text, self.tokenizer)
            for (text, ids), p, rank, lora, hope in zip(inputs, params, priorities, wanted, hoped, strict=True)
        ]
        self._run(work, use_tqdm)
        return [item.output() for item in work]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        prediction: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Generate the next message of one conversation, or of many.

        Args:
            messages: a list of `{"role": ..., "content": ...}`, or a list of such lists.
            others: as in `generate`, and as in `text.chat.render_chat`.

        Raises:
            BadRequest: a message is malformed, or the model has no chat template.
        """
        chats = [messages] if not messages or isinstance(messages[0], dict) else messages  # no message: refused below
        prompts: list[Prompt] = []
        given = _per_prompt(sampling_params or self.get_default_sampling_params(), len(chats), "sampling_params")
        all_params = []
        for chat, params in zip(chats, given, strict=True):
            text = render_chat(
                self.tokenizer,
                chat,  # type: ignore[arg-type]  # narrowed by the line above, which mypy cannot follow
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
            )
            prompts.append(self.tokenizer.encode(text, add_special_tokens=False))
            all_params.append(constrained(params, self.tokenizer, text) if is_constrained(params) else params)
        return self.generate(prompts, all_params, use_tqdm=use_tqdm, lora_request=lora_request, prediction=prediction)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool = False,
    ) -> list[BeamSearchOutput]:
        """The likeliest texts that follow each prompt, as transformers' `generate(num_beams=...)` finds them.

        Args:
            prompts, lora_request: as in `generate`.

        Returns:
            One output per prompt, in the order of the prompts.

        Raises:
            BadRequest: as `generate`; or more beams than `max_num_seqs`.
            OctavoError: a search ended without an answer: its rules leave fewer texts than beams, or the KV cache is
                too small for so many.
        """
        listed = _as_list(prompts)
        found = self.generate(listed, params.sampling(), use_tqdm=use_tqdm, lora_request=lora_request)
        for each in found:
            if each.outputs[0].finish_reason in ("error", "refused"):
                raise OctavoError(str(each.outputs[0].stop_reason))
        loras = _per_prompt(lora_request, len(found), "lora_request")
        return [beam_output(each, params, lora, self.tokenizer) for each, lora in zip(found, loras, strict=True)]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        prompt_name: str | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """The vectors of texts.

        Args:
            prompts: as in `generate`.
            pooling_params: one for all, or one per prompt.
            prompt_name: of the text that the model's makers put before texts of a kind ("query", "document"); None:
                what they put before every text, if anything. Token ids get nothing before them.

        Raises:
            BadRequest: a prompt or a parameter is wrong, or this model makes no vectors.
            OctavoError: the model failed on a text.
        """
        pooled = self._pool("embed", self._named(prompts, prompt_name), pooling_params, use_tqdm)
        return [each.of(EmbeddingOutput(each.outputs.data.tolist())) for each in pooled]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[ClassificationRequestOutput]:
        """What a model with a head says of texts, a value for each class; arguments and errors as of `embed`."""
        pooled = self._pool("classify", _as_list(prompts), pooling_params, use_tqdm)
        return [each.of(ClassificationOutput(each.outputs.data.tolist())) for each in pooled]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: Task | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """As `embed` or `classify`, in arrays and with nothing before texts; None: what the model does."""
        task = pooling_task or ("embed" if "embed" in self.engine.limits.tasks else "classify")
        return self._pool(task, _as_list(prompts), pooling_params, use_tqdm)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: one with each of many, or many one by one.

        A model whose head has one class reads both texts at once; of any other it is the cosine of their vectors.

        Raises:
            BadRequest, OctavoError: as `embed`.
        """
        texts, params = pairs(data_1, data_2), pooling_params or PoolingParams()
        if score_task(self.engine.limits.pooling) == "embed":
            return self._compare(texts, params, use_tqdm)
        limits, typed = self.engine.limits, self.tokenizer.has_types
        most = params.most_tokens(limits.pooling, limits.max_model_len)
        inputs = [self.tokenizer.encode_pair(*pair, most) for pair in texts]
        work = [self._pooled_work("classify", ids, params, second if typed else None) for ids, second in inputs]
        self._run(work, use_tqdm, "Scoring")
        return [each.of(ScoringOutput(float(each.outputs.data[0]))) for each in (item.output() for item in work)]

    def sleep(self, level: int = 1) -> None:
        """Give the memory of weights and cache back until `wake_up`.

        Args:
            level: 1 writes what the cache holds to its disk tier, if it has one; 2 keeps nothing.

        Raises:
            BadRequest: there is no such level.
        """
        if level not in (1, 2):
            raise BadRequest(f"level must be 1 or 2, got {level!r:.80}", "level")
        if not self.is_sleeping:
            self.engine.close(keeps=level == 1)
            self.is_sleeping = True
            give_back()

    def wake_up(self) -> None:
        """Load the weights again.

        Raises:
            ModelError: they cannot be loaded, or their files have changed.
        """
        if not self.is_sleeping:
            return
        source, config, known = self._loaded
        if version(source) != known:
            raise ModelError(f"the files of {source.path} have changed while the model slept: make another LLM")
        self.engine = Engine.load(source, config, self.tokenizer)
        self.is_sleeping = False

    def close(self) -> None:
        """Give up the model and its memory."""
        if not self.is_sleeping:
            self.engine.close()

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else prompt
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise BadRequest(f"a prompt must be a string or a list of token ids, got {prompt!r:.80}", "prompts")
        return None, ids

    def _request(
        self,
        ids: list[int],
        params: SamplingParams,
        priority: int,
        adapter: Adapter | None = None,
        prediction: str = "",
    ) -> Request:
        params = constrained(params, self.tokenizer) if is_constrained(params) else params
        request = Request(
            request_id=str(next(self._ids)),
            prompt_token_ids=ids,
            params=params,
            priority=priority,
            adapter=adapter,
            predicted=self.tokenizer.encode(prediction, add_special_tokens=False)[:MAX_PREDICTED] or None,
        )
        self.engine.scheduler.check(request)
        if params.grammar is not None:
            self.engine.compile(params.grammar)  # kept for when it runs
        return request

    def _named(self, prompts: Prompt | Sequence[Prompt], name: str | None) -> Sequence[Prompt]:
        """Prompts, with the model's own text before those that are texts."""
        before = check_prompt(name, self.engine.limits.pooling)
        return [before + prompt if isinstance(prompt, str) else prompt for prompt in _as_list(prompts)]

    def _pool(
        self,
        task: Task,
        prompts: Sequence[Prompt],
        params: PoolingParams | Sequence[PoolingParams] | None,
        use_tqdm: bool,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        inputs = [self._tokens(prompt)[1] for prompt in prompts]
        given = _per_prompt(params or PoolingParams(), len(inputs), "pooling_params")
        work = [self._pooled_work(task, ids, each) for ids, each in zip(inputs, given, strict=True)]
        self._run(work, use_tqdm, "Pooling")
        return [item.output() for item in work]

    def _pooled_work(self, task: Task, ids: list[int], params: PoolingParams, second: int | None = None) -> PooledWork:
        limits = self.engine.limits
        ids = truncated(ids, params.most_tokens(limits.pooling, limits.max_model_len), self.tokenizer.is_special)
        pooling = Pooling(task, second)
        request = Request(request_id=str(next(self._ids)), prompt_token_ids=ids, pooling=pooling)
        self.engine.scheduler.check(request)
        return PooledWork(request, params, limits.pooling)

    def _compare(
        self, texts: list[tuple[str, str]], params: PoolingParams, use_tqdm: bool
    ) -> list[ScoringRequestOutput]:
        """The cosines of pairs of texts, each different text computed once."""
        different = list(dict.fromkeys(text for pair in texts for text in pair))
        outputs = dict(zip(different, self._pool("embed", different, [params] * len(different), use_tqdm), strict=True))
        scored = []
        for first, second in texts:
            one, other = outputs[first], outputs[second]
            output = one.of(ScoringOutput(cosine(one.outputs.data, other.outputs.data)))
            output.prompt_token_ids = one.prompt_token_ids + other.prompt_token_ids
            scored.append(output)
        return scored

    def _run(self, work: Sequence[Work], use_tqdm: bool, doing: str = "Generating") -> None:
        """Have the engine do all of it."""
        if self.is_sleeping:
            raise BadRequest("the model is asleep: call wake_up() first")
        waiting, running = deque(work), dict[str, Work]()
        before = self.engine.generation_tokens
        try:
            with tqdm(total=len(work), desc=doing, unit="request", disable=not use_tqdm) as bar:
                while waiting or running:
                    self._submit(waiting, running)
                    for update in self.engine.step():
                        if self._take(update, running):
                            if tokens := self.engine.generation_tokens - before:
                                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} token/s")
                            bar.update()
        finally:
            for request_id in running:  # on an exception or Ctrl-C: nothing may stay behind
                self.engine.abort(request_id)
        self.engine.check_integrity()

    def _submit(self, waiting: deque[Work], running: dict[str, Work]) -> None:
        """Hand over as many requests as the engine's queue takes."""
        queued = self.engine.scheduler.num_waiting + len(self.engine.adapters.waiting)
        room = self.engine.config.max_num_queued_requests - queued
        for _ in range(min(room, len(waiting))):
            item = waiting.popleft()
            item.begin(self.engine.clock())
            self.engine.add(item.request)
            running[item.request.request_id] = item

    def _take(self, update: SequenceUpdate, running: dict[str, Work]) -> bool:
        """Give an update to its request; True when that request has ended."""
        if (item := running.get(update.request_id)) is None:
            return False  # a stop string ended it in the update before: one step may make two of a sequence
        if item.take(update):
            self.engine.abort(update.request_id, update.index)
        if item.finished:
            del running[update.request_id]
        return item.finished


class Work(Protocol):
    """What `_run` has the engine do."""

    request: Request

    @property
    def finished(self) -> bool: ...

    def begin(self, time: float) -> None: ...

    def take(self, update: SequenceUpdate) -> bool: ...


class _Work:
    """One request on its way to a `RequestOutput`."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer) -> None:
        params, ids = request.params, request.prompt_token_ids
        self.request = request
        self.metrics = RequestMetrics(0.0)
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._texts = [SequenceText(tokenizer, params, ids, i) for i in range(params.num_sequences)]
        self._first: SequenceUpdate | None = None

    def begin(self, time: float) -> None:
        """It is in the engine's queue, at a time of the engine's clock."""
        self.metrics.arrival_time = time

    def take(self, update: SequenceUpdate) -> bool:
        """Take in an update; True when a stop string ended the sequence and the engine must end it too."""
        text = self._texts[update.index]
        if self._first is None:
            self._first = update
            self.metrics.first_token_time = update.time
        text.push(update)
        if self.finished:
            self.metrics.finished_time = update.time
        return text.stopped and update.finish_reason is None

    @property
    def finished(self) -> bool:
        return all(text.finish_reason is not None for text in self._texts)

    def output(self) -> RequestOutput:
        outputs = [text.output() for text in self._texts]
        params = self.request.params
        packed = self._first.prompt_logprobs if self._first else None
        prompt_logprobs = None if packed is None else list(packed)
        for entry in prompt_logprobs or ():
            if entry is not None:
                fill_decoded(self._tokenizer, entry)
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=choose_best(outputs, params.n) if params.num_sequences > params.n else outputs,
            metrics=self.metrics,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self._first.num_cached_tokens if self._first else 0,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, (str, dict)):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise BadRequest(f"prompts must be a text, token ids or a list of them, got {prompts!r:.80}", "prompts")
    if prompts and isinstance(prompts[0], int):
        return [list(prompts)]  # type: ignore[arg-type]  # ids all through, or `_tokens` says what is wrong
    return prompts  # type: ignore[return-value]  # a str, list or dict per entry, or `_tokens` says so


def _per_prompt(value: T | Sequence[T], count: int, name: str) -> Iterable[T]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} entries for {count} prompts", name)
    return value
