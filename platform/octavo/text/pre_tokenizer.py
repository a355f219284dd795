"""How a byte-level vocabulary splits text into words before merging: the names GGUF files use (`tokenizer.ggml.pre`).

A GGUF file carries no pre-tokenizer, only the name llama.cpp gave it (llama-vocab.cpp). The patterns are those of the
tokenizer.json files that the names stand for. Names in one group share a pattern; for a few models it differs from the
original only where their merges give the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from octavo.errors import ModelError


@dataclass(frozen=True, slots=True)
class Splitting:
    """One way to split, and what llama.cpp derives from its name.

    Attributes:
        names: values of `tokenizer.ggml.pre`.
        patterns: applied in turn; each isolates its matches.
        gpt2: GPT-2's own pattern is applied last.
        ignore_merges: a word that is in the vocabulary becomes that token without applying merges.
        add_bos: the default where the file has no `add_bos_token`.
    """

    names: frozenset[str]
    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SEED = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

SPLITTINGS = (
    Splitting(
        frozenset({"", "default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling"})
        | {"mellum", "gigachat", "a.x-4.0", "exaone4", "modern-bert"},
        gpt2=True,
    ),
    Splitting(
        frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}),
        (r"\p{N}",),
        gpt2=True,
    ),
    Splitting(
        frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}),
        (_LLAMA3,),
        ignore_merges=True,
        add_bos=True,
    ),
    Splitting(frozenset({"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}), (_LLAMA3,)),
    Splitting(
        frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open"})
        | {"grok-2"},
        (_QWEN2,),
    ),
    Splitting(frozenset({"qwen35"}), (_QWEN35,)),
    Splitting(frozenset({"tekken"}), (_TEKKEN,), ignore_merges=True, add_bos=True),
    Splitting(frozenset({"gpt-4o", "llama4", "kanana2", "minimax-m2"}), (_GPT4O,)),
    Splitting(
        frozenset({"deepseek-llm"}),
        # the model's own list of letters is that of the cased scripts
        ("[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    Splitting(frozenset({"deepseek-coder"}), ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    Splitting(frozenset({"bloom", "gpt3-finnish"}), (r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    Splitting(frozenset({"falcon"}), (r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}")),
    Splitting(frozenset({"seed-coder"}), (_SEED,)),
    Splitting(
        frozenset({"deepseek-v3", "hunyuan-dense", "joyai-llm"}),
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3),
    ),
)


def splitting(name: str) -> Splitting:
    """The splitting of a `tokenizer.ggml.pre` name; old files have none, which is the empty name.

    Raises:
        ModelError: the name is not one of ours.
    """
    for entry in SPLITTINGS:
        if name in entry.names:
            return entry
    known = ", ".join(sorted(n for entry in SPLITTINGS for n in entry.names if n))
    raise ModelError(f"this GGUF file names the pre-tokenizer {name!r}, which is not supported; known are: {known}")


def pre_tokenizer(entry: Splitting) -> PreTokenizer:
    """The splitting as a pre-tokenizer that ends in the byte alphabet."""
    splits = [Split(Regex(pattern), behavior="isolated") for pattern in entry.patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=entry.gpt2)])
