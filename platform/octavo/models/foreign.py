"""Models that no record of `families` covers, run by transformers' own code (`runner: transformers`).

The model is transformers'; keys and values are this engine's. All tokens of a step go through the model as one text,
and where its layers call transformers' attention interface, `_attend` stores their keys and values in the paged cache
and attends to those of each token's own sequence. What keeps a state elsewhere (convolutions, recurrent layers) would
mix sequences up. `load_foreign` finds that out: it compares logits, over chunks and over two sequences in one step,
with those of transformers alone, and refuses a model whose logits differ.

Imported only where it is asked for: transformers takes seconds to import.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from octavo.errors import ModelError
from octavo.models.parallel import TPGroup, share_of
from octavo.models.spec import NO_ROPE, ModelSpec
from octavo.models.step_context import KVCache, StepContext
from octavo.source import Source
from octavo_kernels.kv_store import kv_store
from octavo_kernels.paged_attention import PagedBatch, paged_attention

_OURS = "octavo"
_BLOCK = 16
"""Tokens per block of the cache that a model is tried with."""
_TRIED = 40
"""Tokens that it is tried with, and more where a layer's window is at most `_LONGEST_WINDOW`."""
_LONGEST_WINDOW = 1024
_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Of logits, as a norm, relative to those of transformers alone."""


@dataclass(slots=True)
class _Step:
    """What the attention of a step needs, and the layers that have called it."""

    context: StepContext
    seen: list[int] = field(default_factory=list)


_step: ContextVar[_Step] = ContextVar("step")


def read_foreign_spec(source: Source) -> ModelSpec:
    """What the engine must know of a model: its vocabulary, its length, and what its layers keep of a token.

    Raises:
        ModelError: transformers does not know it, or it is no decoder whose layers all attend.
    """
    config = _config(source)
    try:
        return _spec(source, config, config.get_text_config())
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:  # whatever such a config has for numbers
        raise ModelError(f"runner 'transformers' cannot tell the shape of {source.name!r}: {_short(error)}") from error


def _spec(source: Source, config: Any, text: Any) -> ModelSpec:
    heads = _number(source, text, "num_attention_heads")
    keys = getattr(text, "qk_nope_head_dim", None) and text.qk_nope_head_dim + text.qk_rope_head_dim
    width = keys or getattr(text, "head_dim", None) or _number(source, text, "hidden_size") // heads
    return ModelSpec(
        family=str(config.model_type),
        vocab_size=_number(source, text, "vocab_size"),
        hidden_size=_number(source, text, "hidden_size"),
        num_layers=(layers := _number(source, text, "num_hidden_layers")),
        num_heads=heads,
        num_kv_heads=heads if keys else getattr(text, "num_key_value_heads", None) or heads,
        head_dim=max(width, getattr(text, "v_head_dim", None) or 0),
        intermediate_size=1,
        max_position_embeddings=_number(source, text, "max_position_embeddings"),
        norm_eps=1e-6,
        rope=NO_ROPE,
        windows=(None,) * layers,
        attention_scale=1.0,
        tied_embeddings=False,
        bos_token_id=text.bos_token_id if isinstance(text.bos_token_id, int) else None,
        eos_token_ids=_ends(source, text),
    )


def _config(source: Source) -> Any:
    if source.kind != "hf":
        raise ModelError(f"runner 'transformers' reads directories of safetensors, and {source.name!r} is a GGUF file")
    try:
        return transformers.AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a config of any of hundreds of classes raises
        raise ModelError(f"transformers cannot read the config of {source.name!r}: {_short(error)}") from error


def _number(source: Source, config: Any, name: str) -> int:
    found = getattr(config, name, None)
    if not isinstance(found, int) or found < 1:
        raise ModelError(f"the config of {source.name!r} has no {name}: runner 'transformers' cannot tell its cache")
    return found


def _ends(source: Source, config: Any) -> tuple[int, ...]:
    """End tokens of the config and, which chat models need, of generation_config.json."""
    found = [config.eos_token_id]
    if (source.path / "generation_config.json").is_file():
        found.append(transformers.GenerationConfig.from_pretrained(source.path, local_files_only=True).eos_token_id)
    flat = [token for each in found for token in (each if isinstance(each, list) else [each])]
    return tuple(dict.fromkeys(token for token in flat if isinstance(token, int)))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class ForeignDecoder:
    """A model of transformers with the interface of `decoder.Decoder`.

    Attributes: as `Decoder`'s of the same names.
    """

    def __init__(self, spec: ModelSpec, model: Any, num_positions: int) -> None:
        self.spec = spec
        self.share = share_of(spec)
        self.group = TPGroup()
        self.num_positions = num_positions
        self.split_keys: int | None = None
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._model = model
        self._body, self._given = model.base_model, _Given()

    def forward(self, token_ids: Tensor, context: StepContext) -> Tensor:
        """[T] integers -> [T, D], as `Decoder.forward`."""
        with torch.inference_mode():
            return self._run(token_ids, _Step(context))

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, V] float32: what the model's own class makes of its body's result."""
        self._given.hidden = hidden[None]
        setattr(self._model, self._model.base_model_prefix, self._given)
        try:
            with torch.inference_mode():
                places = torch.zeros(1, len(hidden), dtype=torch.int64, device=self.device)
                scores: Tensor = self._model(input_ids=places, use_cache=False).logits
                return scores[0].float()
        finally:
            setattr(self._model, self._model.base_model_prefix, self._body)

    def check(self, name: str) -> None:
        """Compare with transformers alone: two sequences, one of them in two chunks, the second beside the other.

        Raises:
            ModelError: logits differ, or something fails on the way.
        """
        try:
            one = torch.randint(self.spec.vocab_size, (self._tried(),), generator=torch.Generator().manual_seed(1))
            other, cut = one.flip(0), len(one) // 3
            expected = torch.cat([self._alone(one), self._alone(other)])
            found = self._in_chunks(one.to(self.device), other.to(self.device), cut)
        except Exception as error:
            raise ModelError(f"transformers' code cannot run {name!r} here: {_short(error)}") from error
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= _DIFFERENCE[self.dtype]:
            raise ModelError(
                f"runner 'transformers' computes other logits for {name!r} than transformers alone (they differ by "
                f"{difference:.1%}): its layers keep more of a text than the keys and values of attention"
            )

    def _tried(self) -> int:
        """Tokens for a trial: beyond the windows of its layers where they are short."""
        window = getattr(self._model.config.get_text_config(), "sliding_window", None) or 0
        return min(_TRIED + (window if window <= _LONGEST_WINDOW else 0), self.num_positions)

    def _alone(self, token_ids: Tensor) -> Tensor:
        """Logits [T, V] of a text by transformers alone."""
        self._model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                found: Tensor = self._model(input_ids=token_ids.to(self.device)[None], use_cache=False).logits
                return found[0].float()
        finally:
            self._model.set_attn_implementation(_OURS)

    def _in_chunks(self, one: Tensor, other: Tensor, cut: int) -> Tensor:
        """Logits of both texts, the first of which is computed in two chunks and the second beside its second."""
        length = len(one)
        blocks = -(-length // _BLOCK)
        shape = (2 * blocks, _BLOCK, self.spec.num_kv_heads, self.spec.head_dim)
        kv = [KVCache(*torch.zeros(2, *shape, dtype=self.dtype, device=self.device)) for _ in self.spec.windows]
        tables = np.arange(2 * blocks, dtype=np.int32).reshape(2, blocks)

        def step(token_ids: Tensor, starts: list[int], lengths: list[int]) -> Tensor:
            arrays = np.array(starts, np.int32), np.array(lengths, np.int32), tables[: len(lengths)]
            return self._tried_step(token_ids, StepContext(PagedBatch.build(*arrays, _BLOCK, self.device), kv))

        begun = step(one[:cut], [0, cut], [cut])
        rest = torch.cat([one[cut:], other])
        return torch.cat([begun, step(rest, [0, length - cut, len(rest)], [length, length])])

    def _tried_step(self, token_ids: Tensor, context: StepContext) -> Tensor:
        step = _Step(context)
        with torch.inference_mode():
            hidden = self._run(token_ids, step)
        if sorted(step.seen) != list(range(self.spec.num_layers)):
            raise ModelError(f"of {self.spec.num_layers} layers, {len(set(step.seen))} attend through its interface")
        return self.logits(hidden)

    def _run(self, token_ids: Tensor, step: _Step) -> Tensor:
        token = _step.set(step)
        try:
            places = step.context.layout.positions[None]
            found: Tensor = self._body(input_ids=token_ids[None], position_ids=places, use_cache=False)[0]
            return found[0]
        finally:
            _step.reset(token)


class _Given(nn.Module):
    """Stands where a model has its body, and gives the hidden states that it is told."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.hidden)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over the paged cache of the step that runs.

    Args:
        query, key, value: [1, H, T, D] of all tokens of the step.
        s_aux: scores of the sinks.

    Returns:
        [1, T, H, D].
    """
    step, layer = _step.get(None), module.layer_idx
    if step is None:
        raise ModelError("its attention is not the one that was asked for")
    step.seen.append(layer)
    kv, width = step.context.kv[layer], step.context.kv[layer].k.shape[-1]
    q, k, v = (F.pad(x[0].transpose(0, 1), (0, width - x.shape[-1])).contiguous() for x in (query, key, value))
    kv_store(k, v, kv.k, kv.v, step.context.layout.slots, kv.scales)
    attended = paged_attention(
        q,
        kv.k,
        kv.v,
        step.context.layout,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or _window(module, layer),
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.float(),
        kv_scales=kv.scales,
    )
    return attended[None, ..., : value.shape[-1]], None


def _window(module: Any, layer: int) -> int | None:
    """The window of a layer whose code leaves it to the mask, which is not used here."""
    kinds = getattr(module.config, "layer_types", None)
    return module.config.sliding_window if kinds and kinds[layer] == "sliding_attention" else None


def load_foreign(source: Source, spec: ModelSpec, dtype: torch.dtype, device: str, positions: int) -> ForeignDecoder:
    """Load a model of transformers with its own code.

    Args:
        dtype: of weights, activations and keys and values.
        positions: the longest sequence that will be run.

    Raises:
        ModelError: it cannot be loaded, or is refused because its logits would differ.
    """
    ALL_ATTENTION_FUNCTIONS.register(_OURS, _attend)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=_OURS,
        )
    except Exception as error:  # as of its config
        raise ModelError(f"transformers cannot load {source.name!r}: {_short(error)}") from error
    decoder = ForeignDecoder(spec, model.to(device).eval(), positions)
    decoder.check(source.name)
    return decoder
