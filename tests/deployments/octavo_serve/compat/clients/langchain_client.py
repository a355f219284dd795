"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

from cases import CAPITAL, DOCUMENTS, EMBEDDER, MODEL, PERSON, RESULT, URL, WEATHER, check, check_near, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

GIVEN = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}
model = ChatOpenAI(**GIVEN)


class Person(BaseModel):
    """A person."""

    name: str
    born: int


@tool
def weather(city: str) -> str:
    """The weather."""
    return RESULT


def chat() -> None:
    check("Paris" in (said := model.invoke(CAPITAL)).content, said)


def stream() -> None:
    check("Paris" in "".join(chunk.content for chunk in model.stream(CAPITAL)))


def bind_tools() -> None:
    bound, messages = model.bind_tools([weather]), [HumanMessage(WEATHER)]
    messages.append(bound.invoke(messages))
    (call,) = messages[-1].tool_calls
    messages.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))
    check("14 degrees" in (said := bound.invoke(messages)).content, said)


def structured_json_schema() -> None:
    check(model.with_structured_output(Person, method="json_schema").invoke(PERSON).born == 1815)


def structured_function_calling() -> None:
    check(model.with_structured_output(Person, method="function_calling").invoke(PERSON).born == 1815)


def structured_json_mode() -> None:
    check(model.with_structured_output(Person, method="json_mode").invoke(f"{PERSON} In JSON.").born == 1815)


def responses() -> None:
    said = ChatOpenAI(**GIVEN, use_responses_api=True).invoke(CAPITAL)
    check("Paris" in said.text, said)


def embeddings() -> None:
    # no counting of tokens before: that would fetch a vocabulary of OpenAI's
    embedder = OpenAIEmbeddings(**GIVEN | {"model": EMBEDDER}, check_embedding_ctx_length=False)
    check_near(embedder.embed_query(CAPITAL), embedder.embed_documents(DOCUMENTS))
    shorter = OpenAIEmbeddings(**GIVEN | {"model": EMBEDDER}, check_embedding_ctx_length=False, dimensions=128)
    check_near(shorter.embed_query(CAPITAL), shorter.embed_documents(DOCUMENTS), 128)


run(
    "langchain",
    "langchain-openai",
    *(chat, stream, bind_tools),
    *(structured_json_schema, structured_function_calling, structured_json_mode, responses, embeddings),
)
