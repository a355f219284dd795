"""Anthropic's SDK for Python."""

from __future__ import annotations

from anthropic import Anthropic
from cases import CAPITAL, MODEL, PERSON, RESULT, SCHEMA, URL, WEATHER, check, run, user
from pydantic import BaseModel

client = Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=60)
TOOL = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
ASKED = {"model": MODEL, "max_tokens": 200}


class Person(BaseModel):
    name: str
    born: int


def messages() -> None:
    said = client.messages.create(**ASKED, messages=user(CAPITAL), system="Be brief.")
    check("Paris" in said.content[0].text and said.stop_reason == "end_turn" and said.usage.output_tokens, said)


def stream() -> None:
    with client.messages.stream(**ASKED, messages=user(CAPITAL)) as events:
        text = "".join(events.text_stream)
        said = events.get_final_message()
    check("Paris" in text and said.content[0].text == text and said.usage.output_tokens > 1, said)


def tool_loop() -> None:
    asked = user(WEATHER)
    said = client.messages.create(**ASKED, messages=asked, tools=[TOOL])
    (call,) = [block for block in said.content if block.type == "tool_use"]
    check(call.input == {"city": "Paris"} and said.stop_reason == "tool_use", said)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    asked += [{"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    said = client.messages.create(**ASKED, messages=asked, tools=[TOOL])
    check("14 degrees" in said.content[0].text, said)


def tools_streamed() -> None:
    with client.messages.stream(**ASKED, messages=user(WEATHER), tools=[TOOL]) as events:
        said = events.get_final_message()
    check(said.content[-1].input == {"city": "Paris"} and said.stop_reason == "tool_use", said)


def tools_forced() -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        said = client.messages.create(**ASKED, messages=user(WEATHER), tools=[TOOL], tool_choice=choice)
        check(said.content[-1].name == "weather", said)


def count_tokens() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=user(CAPITAL)).input_tokens
    said = client.messages.create(**ASKED, messages=user(CAPITAL)).usage
    read = said.cache_read_input_tokens or 0
    check(counted == said.input_tokens + read + (said.cache_creation_input_tokens or 0), counted, said)


def parse() -> None:
    said = client.messages.parse(**ASKED, messages=user(PERSON), output_format=Person)
    check(said.parsed_output == Person(name="Ada Lovelace", born=1815), said)


run("anthropic-python", "anthropic", messages, stream, tool_loop, tools_streamed, tools_forced, count_tokens, parse)
