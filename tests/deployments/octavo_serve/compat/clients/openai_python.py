"""The OpenAI SDK for Python."""

from __future__ import annotations

import json

from cases import (
    CAPITAL,
    DOCUMENTS,
    EMBEDDER,
    MODEL,
    PERSON,
    RESULT,
    SCHEMA,
    TOOL,
    URL,
    WEATHER,
    check,
    check_near,
    run,
    user,
)
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
FLAT = {"type": "function", "name": "weather", "description": "The weather.", "parameters": SCHEMA, "strict": False}


class Person(BaseModel):
    name: str
    born: int


class weather(BaseModel):  # noqa: N801
    """The weather."""

    city: str


def chat() -> None:
    said = client.chat.completions.create(model=MODEL, messages=user(CAPITAL))
    check("Paris" in said.choices[0].message.content, said)


def stream() -> None:
    with client.chat.completions.stream(model=MODEL, messages=user(CAPITAL)) as events:
        text = "".join(event.delta for event in events if event.type == "content.delta")
    check("Paris" in text and events.get_final_completion().choices[0].finish_reason == "stop", text)


def parse() -> None:
    said = client.chat.completions.parse(model=MODEL, messages=user(PERSON), response_format=Person)
    check(said.choices[0].message.parsed == Person(name="Ada Lovelace", born=1815), said)


def parse_streamed() -> None:
    with client.chat.completions.stream(model=MODEL, messages=user(PERSON), response_format=Person) as events:
        said = events.get_final_completion()
    check(said.choices[0].message.parsed.born == 1815, said)


def tool_loop() -> None:
    messages = user(WEATHER)
    said = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0]
    (call,) = said.message.tool_calls or []
    check(json.loads(call.function.arguments) == {"city": "Paris"} and said.finish_reason == "tool_calls", said)
    messages += [said.message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    said = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0]
    check("14 degrees" in said.message.content, said)


def tools_streamed() -> None:
    with client.chat.completions.stream(model=MODEL, messages=user(WEATHER), tools=[TOOL]) as events:
        (call,) = events.get_final_completion().choices[0].message.tool_calls or []
    check(json.loads(call.function.arguments) == {"city": "Paris"}, call)


def tools_parsed() -> None:
    tools = [pydantic_function_tool(weather)]
    said = client.chat.completions.parse(model=MODEL, messages=user(WEATHER), tools=tools)
    check(said.choices[0].message.tool_calls[0].function.parsed_arguments == weather(city="Paris"), said)


def tools_forced() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        said = client.chat.completions.create(model=MODEL, messages=user(WEATHER), tools=[TOOL], tool_choice=choice)
        check(said.choices[0].message.tool_calls[0].function.name == "weather", said)


def responses_create() -> None:
    first = client.responses.create(model=MODEL, input=CAPITAL)
    check("Paris" in first.output_text, first)
    second = client.responses.create(model=MODEL, input="And again?", previous_response_id=first.id)
    check(second.output_text and second.usage.input_tokens > first.usage.input_tokens, second)


def responses_stream() -> None:
    with client.responses.stream(model=MODEL, input=CAPITAL) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        said = events.get_final_response()
    check("Paris" in text and said.output_text == text and said.status == "completed", said)


def responses_parse() -> None:
    said = client.responses.parse(model=MODEL, input=PERSON, text_format=Person)
    check(said.output_parsed == Person(name="Ada Lovelace", born=1815), said)


def responses_tools() -> None:
    first = client.responses.create(model=MODEL, input=WEATHER, tools=[FLAT])
    (call,) = [item for item in first.output if item.type == "function_call"]
    output = [{"type": "function_call_output", "call_id": call.call_id, "output": RESULT}]
    said = client.responses.create(model=MODEL, input=output, previous_response_id=first.id, tools=[FLAT])
    check("14 degrees" in said.output_text, said)


def embeddings() -> None:
    said = client.embeddings.create(model=EMBEDDER, input=[CAPITAL, *DOCUMENTS])
    query, *documents = [item.embedding for item in said.data]
    check_near(query, documents)
    check(said.usage.total_tokens > 20 and [item.index for item in said.data] == [0, 1, 2, 3], said.usage)


def embeddings_float() -> None:
    asked = {"model": EMBEDDER, "encoding_format": "float", "dimensions": 128}
    said = client.embeddings.create(**asked, input=CAPITAL)
    documents = [item.embedding for item in client.embeddings.create(**asked, input=DOCUMENTS).data]
    check_near(said.data[0].embedding, documents, 128)


def embeddings_of_tokens() -> None:
    one, two = [101, 3000, 102], [101, 7592, 102]
    first = client.embeddings.create(model=EMBEDDER, input=one).data
    both = client.embeddings.create(model=EMBEDDER, input=[one, two]).data
    check(len(first) == 1 and first[0].embedding == both[0].embedding != both[1].embedding)


run(
    "openai-python",
    "openai",
    *(chat, stream, parse, parse_streamed, tool_loop, tools_streamed, tools_parsed, tools_forced),
    *(responses_create, responses_stream, responses_parse, responses_tools),
    *(embeddings, embeddings_float, embeddings_of_tokens),
)
