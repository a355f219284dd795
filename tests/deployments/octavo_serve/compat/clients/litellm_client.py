"""LiteLLM, by its provider for OpenAI-compatible servers, and by Anthropic's."""

from __future__ import annotations

import litellm
from cases import CAPITAL, DOCUMENTS, EMBEDDER, MODEL, PERSON, TOOL, URL, WEATHER, check, check_near, run, user
from pydantic import BaseModel

OPENAI = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0}
ANTHROPIC = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none", "max_tokens": 200, "num_retries": 0}


class Person(BaseModel):
    name: str
    born: int


def chat() -> None:
    said = litellm.completion(**OPENAI, messages=user(CAPITAL))
    check("Paris" in said.choices[0].message.content, said)


def stream() -> None:
    chunks = list(litellm.completion(**OPENAI, messages=user(CAPITAL), stream=True))
    check("Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks)


def tools() -> None:
    said = litellm.completion(**OPENAI, messages=user(WEATHER), tools=[TOOL])
    check(said.choices[0].message.tool_calls[0].function.name == "weather", said)


def structured() -> None:
    said = litellm.completion(**OPENAI, messages=user(PERSON), response_format=Person)
    check(Person.model_validate_json(said.choices[0].message.content).born == 1815, said)


def responses() -> None:
    asked = OPENAI | {"model": f"openai/{MODEL}"}
    said = litellm.responses(**asked, input=CAPITAL)
    check("Paris" in said.output[-1].content[0].text, said)


def messages() -> None:
    said = litellm.completion(**ANTHROPIC, messages=user(CAPITAL))
    check("Paris" in said.choices[0].message.content, said)


def embedding() -> None:
    for provider in ("hosted_vllm", "openai"):
        asked = OPENAI | {"model": f"{provider}/{EMBEDDER}"}
        query, *documents = [item["embedding"] for item in litellm.embedding(**asked, input=[CAPITAL, *DOCUMENTS]).data]
        check_near(query, documents)


def rerank() -> None:
    for provider, base in (("hosted_vllm", f"{URL}/v1"), ("cohere", URL), ("jina_ai", f"{URL}/v1")):
        asked = {"model": f"{provider}/{EMBEDDER}", "api_base": base, "api_key": "none", "num_retries": 0}
        said = litellm.rerank(**asked, query=CAPITAL, documents=DOCUMENTS, top_n=2)
        check(next(result["index"] for result in said.results) == 1 and len(said.results) == 2, provider, said)


run("litellm", "litellm", chat, stream, tools, structured, responses, messages, embedding, rerank)
