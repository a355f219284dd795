"""What a gateway remembers of the last requests."""

from __future__ import annotations

import asyncio
from typing import Any

from octavo.request import Placement
from octavo_serve.api.body import parse
from octavo_serve.api.explaining import MAX_PROMPTS, Explaining, opens_reasoning
from octavo_serve.api.model import Defaults, ServedModel
from octavo_serve.api.service import Service
from octavo_serve.api.tracing import Course
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

TEXT = "The history of the town is long, and nobody knows all of it. " * 3


def remembering(service: Service, max_bytes: int = 2**22) -> Explaining:
    service.explaining = Explaining(max_bytes, service.telemetry)
    return service.explaining


def asked(service: Service, prompt: Any = TEXT) -> str:
    answer = asyncio.run(service.answer(COMPLETIONS, parse(CompletionRequest, {"prompt": prompt})))
    return str(answer["id"])


def test_a_prompt_is_remembered_with_its_answer_and_counted(service: Service, client: Any) -> None:
    client.placed = Placement("t", "shard", "load", 0, 0.1)
    explaining = remembering(service)
    (story,) = explaining.find(asked(service))
    assert (story.miss.reason, story.finish, story.prompt.shard) == ("new", ["stop"], "shard")
    assert story.prompt.tokens[story.prompt.num_prompt :].tolist()[:-1] == client._tokens(0, client.opened[0])
    assert story.generated == len(story.prompt.tokens) - story.prompt.num_prompt
    asked(service)
    assert dict(service.telemetry.misses) == {("tiny", "new"): 1, ("tiny", "shard_gone"): 1}
    assert [name for name, _ in story.marks] == ["model", "template", "tokens"]


def test_what_is_old_or_too_much_is_not(service: Service) -> None:
    explaining = remembering(service, 30_000)
    many = asked(service, ["Hello"] * MAX_PROMPTS)
    assert len(explaining.find(many)) <= 3
    assert explaining.find(asked(service, "Bye"))
    assert explaining.find("cmpl-unknown") == []


def test_a_traced_request_has_one_course(service: Service) -> None:
    explaining = remembering(service)
    traced = Course("route", 0.0)
    assert explaining.follow("unknown", traced) is traced
    (story,) = explaining.find(asked(service))
    assert explaining.follow(story.prompt.request_id, traced) is traced
    assert story.course is traced
    assert explaining.follow(story.prompt.request_id, None) is story.course is not traced


def test_what_opens_reasoning_is_the_templates(service: Service, client: Any) -> None:
    model = ServedModel("m", 0, client.tokenizer, client, Defaults(response_template="qwen3_xml"))
    assert opens_reasoning(model) == ["<think>"]
    assert opens_reasoning(ServedModel("m", 0, client.tokenizer, client)) == []
