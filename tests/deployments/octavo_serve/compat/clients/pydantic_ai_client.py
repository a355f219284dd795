"""Pydantic AI, with its models for chats and for Responses."""

from __future__ import annotations

from collections.abc import Callable

from cases import CAPITAL, MODEL, PERSON, RESULT, URL, WEATHER, check, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
MODELS = {
    "chat": OpenAIChatModel(MODEL, provider=provider),
    "responses": OpenAIResponsesModel(MODEL, provider=provider),
}


class Person(BaseModel):
    name: str
    born: int


def text(model: str) -> None:
    check("Paris" in (said := Agent(MODELS[model]).run_sync(CAPITAL).output), said)


def tool_loop(model: str) -> None:
    agent = Agent(MODELS[model])

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather."""
        return RESULT

    check("14 degrees" in (said := agent.run_sync(WEATHER).output), said)


def typed(model: str) -> None:
    check((said := Agent(MODELS[model], output_type=Person).run_sync(PERSON).output).born == 1815, said)


def native(model: str) -> None:
    check((said := Agent(MODELS[model], output_type=NativeOutput(Person)).run_sync(PERSON).output).born == 1815, said)


def prompted(model: str) -> None:
    check((said := Agent(MODELS[model], output_type=PromptedOutput(Person)).run_sync(PERSON).output).born == 1815, said)


def case(body: Callable[[str], None], model: str) -> Callable[[], None]:
    def asked() -> None:
        body(model)

    asked.__name__ = f"{model}_{body.__name__}"
    return asked


BODIES = text, tool_loop, typed, native, prompted
run("pydantic-ai", "pydantic-ai-slim", *(case(body, model) for model in MODELS for body in BODIES))
