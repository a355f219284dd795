"""Hugging Face's `text-generation`, and `InferenceClient` of the older huggingface_hub that it needs."""

from __future__ import annotations

import json

from cases import ASKED, PERSON, URL, check, prompt, run
from huggingface_hub import InferenceClient
from text_generation import Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType

CLIENT, HUB = Client(URL, timeout=60), InferenceClient(URL)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "born": {"type": "integer"}}}


def generate() -> None:
    said = CLIENT.generate(ASKED, max_new_tokens=20)
    check("Paris" in said.generated_text, said)
    check(said.details.finish_reason == "eos_token" and said.details.tokens[-1].special, said)


def details() -> None:
    said = CLIENT.generate(ASKED, decoder_input_details=True, top_n_tokens=2, temperature=0.5, seed=1).details
    check(said.seed == 1 and len(said.prefill) > 5 and said.prefill[0].logprob is None, said)
    check(all(len(top) == 2 for top in said.top_tokens or [[]]), said)


def best_of() -> None:
    said = CLIENT.generate(ASKED, best_of=2, do_sample=True)
    check(len(said.details.best_of_sequences or ()) == 1, said)


def stream() -> None:
    events = list(CLIENT.generate_stream(ASKED, max_new_tokens=20))
    text = "".join(event.token.text for event in events if not event.token.special)
    check("Paris" in text and events[-1].generated_text == text, events)


def stop() -> None:
    said = CLIENT.generate(ASKED, stop_sequences=["capital"])
    check(said.generated_text == "The capital" and said.details.finish_reason == "stop_sequence", said)


def grammar() -> None:
    said = CLIENT.generate(prompt(PERSON), max_new_tokens=60, grammar=Grammar(type=GrammarType.Json, value=SCHEMA))
    check(json.loads(said.generated_text)["born"] == 1815, said)


def refused() -> None:
    for ask in (CLIENT.generate, lambda text, **more: list(CLIENT.generate_stream(text, **more))):
        try:
            ask(ASKED, typical_p=0.5)
        except ValidationError as error:
            check("typical_p is not supported" in str(error), error)
        else:
            check(False)


def hub() -> None:
    check("Paris" in (said := HUB.text_generation(ASKED, return_full_text=False)), said)
    told = "".join(HUB.text_generation(ASKED, stream=True))
    check("Paris" in told, told)
    whole = HUB.text_generation(ASKED, details=True, decoder_input_details=True)
    check(whole.details.finish_reason == "eos_token" and len(whole.details.prefill) > 5, whole)


run("tgi", "text-generation", generate, details, best_of, stream, stop, grammar, refused, hub)
