"""The least time of a step: the roofline (Williams et al. 2009) of its linear layers and of its attention.

    seconds = max(2 P T / F, W / B)  +  max(4 q A / F, K / B)  +  all-reduces

where T is tokens, P parameters that multiply a token, F dense operations per second, W bytes of weights read once per
step, B memory bandwidth, A positions attended to over all layers, q the width of all query heads, and K bytes of keys
and values read and written (Pope et al. 2022, section 3). Real engines are slower: they add launches, sampling and
scheduling, and reach only a share of both rates. `--measured` shows that share.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.planning.machines import Machine
from octavo.planning.memory import DTYPE_BYTES, Holding
from octavo.planning.shape import Shape


@dataclass(frozen=True, slots=True)
class Roofline:
    """Upper bounds on the speed of one model on one kind of machine."""

    holding: Holding
    machine: Machine

    def step_seconds(self, tokens: int, sequences: int, attended: float) -> float:
        """Least time of a step.

        Args:
            tokens: computed in this step.
            sequences: number of sequences they belong to; each is sampled once.
            attended: positions its tokens attend to, themselves included, summed over the tokens (as in `CostModel`).
        """
        return (
            self._linear(tokens, sequences)
            + self._attention(tokens, sequences, attended)
            + self._all_reduces(tokens)
        )  # fmt: skip

    def prefill_seconds(self, prompt: int, chunk: int) -> float:
        """Least time to compute a prompt alone, `chunk` tokens per step."""
        seconds = 0.0
        for start in range(0, prompt, chunk):
            size = min(chunk, prompt - start)
            seconds += self.step_seconds(size, 1, size * start + size * (size + 1) / 2)
        return seconds

    def texts_seconds(self, texts: float, length: int) -> float:
        """Least time of a step over so many whole texts of `length` tokens, of which only states are wanted."""
        seen = length if self.holding.shape.encoder else (length + 1) / 2
        return self.step_seconds(round(texts * length), round(texts), texts * length * seen)

    def decode_seconds(self, sequences: int, context: float) -> float:
        """Least time of a step that computes one token for each of `sequences`, all with this context."""
        return self.step_seconds(sequences, sequences, sequences * context)

    def _linear(self, tokens: int, sequences: int) -> float:
        shape, ranks = self.holding.shape, self.holding.ranks
        multiplied: float = sum(t.parameters for t in shape.tensors if t.role in ("linear", "router"))
        experts = sum(t.parameters for t in shape.tensors if t.role == "expert")
        multiplied += experts * shape.experts_per_token / shape.num_experts
        logits = shape.vocab_size * shape.hidden_size * sequences if shape.generates else 0
        operations = 2 * (multiplied * tokens + logits)
        return max(operations / ranks / self._rate(), self._weights_read(tokens) / self.machine.bandwidth)

    def _weights_read(self, tokens: int) -> float:
        """Bytes read by a rank: all linear layers, the output matrix, and the experts that at least one of the `tokens`
        chooses: on average E (1 - (1 - k / E) ^ T) of E, if each token picks k at random."""
        shape, holding = self.holding.shape, self.holding
        touched = 1 - (1 - shape.experts_per_token / shape.num_experts) ** tokens
        # a rank reads only its rows of the output matrix, even if it holds the whole table because of tied embeddings
        tied = shape.tied_embeddings and shape.generates
        head = holding.weight_bytes("embedding") / holding.ranks if tied else 0.0
        fixed = holding.weight_bytes("linear", "router", "bias", "norm", "head")
        return fixed + head + touched * holding.weight_bytes("expert")

    def _attention(self, tokens: int, sequences: int, attended: float) -> float:
        shape, holding = self.holding.shape, self.holding
        seen = _visible(shape, attended / tokens) * attended
        operations = 4 * shape.num_heads * shape.head_dim * shape.kv_layers * seen
        # Sequences alike, n = T / S new tokens each: attended = S (n C - n (n - 1) / 2) for contexts of C
        context = seen * sequences / tokens + (tokens - sequences) / 2
        moved = holding.kv_bytes_per_token() * (context + tokens)
        rate = self.machine.rate(holding.dtype) or self.machine.rates["float32"]
        return max(operations / holding.ranks / rate, moved / self.machine.bandwidth)

    def _all_reduces(self, tokens: int) -> float:
        """Seconds of two ring all-reduces per layer; each moves 2 (N - 1) / N of the hidden states."""
        shape, holding = self.holding.shape, self.holding
        size = tokens * shape.hidden_size * DTYPE_BYTES[holding.dtype]
        return 2 * shape.num_layers * 2 * (holding.ranks - 1) / holding.ranks * size / self.machine.link

    def _rate(self) -> float:
        """Operations per second of the linear layers. If only weights are quantised, they multiply in the model's
        type."""
        holding, machine = self.holding, self.machine
        quantized = holding.quantization.compute if holding.quantization else None
        own = machine.rate(holding.dtype) or machine.rates["float32"]
        return (quantized and machine.rate(quantized)) or own


def _visible(shape: Shape, context: float) -> float:
    """Share of the context that a token attends to, averaged over layers, of which some have a window (in encoders on
    both sides)."""
    sides = 2 if shape.encoder else 1
    seen = [min(context, sides * window) if window else context for window in shape.windows]
    return sum(seen) / context / shape.num_layers
