"""OpenAI's Agents SDK for Python, over chats and over Responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cases import CAPITAL, MODEL, PERSON, RESULT, URL, WEATHER, check, run
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
MODELS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}


class Person(BaseModel):
    name: str
    born: int


@function_tool
def weather(city: str) -> str:
    """The weather."""
    return RESULT


async def text(agent: Callable[..., Agent]) -> None:
    check("Paris" in (said := (await Runner.run(agent(), CAPITAL)).final_output), said)


async def tool_loop(agent: Callable[..., Agent]) -> None:
    said = (await Runner.run(agent(tools=[weather]), WEATHER)).final_output
    check("14 degrees" in said, said)


async def tool_loop_streamed(agent: Callable[..., Agent]) -> None:
    running = Runner.run_streamed(agent(tools=[weather]), WEATHER)
    async for _ in running.stream_events():
        pass
    check("14 degrees" in running.final_output, running.final_output)


async def typed(agent: Callable[..., Agent]) -> None:
    said = (await Runner.run(agent(output_type=Person), PERSON)).final_output
    check(said == Person(name="Ada Lovelace", born=1815), said)


def case(body: Callable[[Callable[..., Agent]], Awaitable[None]], model: str) -> Callable[[], Awaitable[None]]:
    async def asked() -> None:
        client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
        await body(lambda **given: Agent(name="a", model=MODELS[model](MODEL, client), **given))

    asked.__name__ = f"{model}_{body.__name__}"
    return asked


BODIES = text, tool_loop, tool_loop_streamed, typed
run("agents-python", "openai-agents", *(case(body, model) for model in MODELS for body in BODIES))
