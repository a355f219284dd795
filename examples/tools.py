"""A model that uses tools, with the OpenAI SDK: the usual loop, against `make serve CONFIG=configs/tools.yaml`.

.venv/bin/pip install -c constraints.txt openai
.venv/bin/python examples/tools.py "What is 1234 times 5678?"

A model of half a billion parameters writes its calls as it likes when it is free to. So the first turn asks for a call
(`required`: whatever it says is a call whose arguments fit). Two short examples show it how to answer from a result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Weather(BaseModel):
    """Get the weather in a city now."""

    city: str


class Multiply(BaseModel):
    """Multiply two numbers."""

    a: int
    b: int


def weather(city: str) -> str:
    """From a table, where others ask a service."""
    return {"Paris": "14 degrees, rain", "Cairo": "31 degrees, sunny"}.get(city, "unknown")


def multiply(a: int, b: int) -> str:
    return str(a * b)


FUNCTIONS: dict[str, Callable[..., str]] = {"weather": weather, "multiply": multiply}
TOOLS = [pydantic_function_tool(Weather, name="weather"), pydantic_function_tool(Multiply, name="multiply")]


SYSTEM = "You are a helpful assistant. When a tool has given a result, answer the user in one plain sentence."


def ask(client: OpenAI, question: str) -> str | None:
    """Let the model call tools, then answer from what they said."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    while True:
        # a model this small calls on and on while it sees the tools; larger ones need no "none"
        choice = "auto" if len(messages) == 2 else "none"
        chat = client.chat.completions.create(
            model="qwen2.5-coder-0.5b", messages=messages, tools=TOOLS, tool_choice=choice, temperature=0
        )
        message = chat.choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message)
        for call in message.tool_calls:
            result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", nargs="*", default=["What is the weather in Paris?", "What is 1234 times 5678?"])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.url, api_key="none")
    for question in arguments.questions:
        print(f"> {question}\n{ask(client, question)}")


if __name__ == "__main__":
    main()
