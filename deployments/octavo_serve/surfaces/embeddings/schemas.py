"""Bodies and answers of OpenAI's /v1/embeddings, with vLLM's extensions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.fields import Integer, Name, Options, Prompt
from octavo_serve.surfaces.openai.schemas import Messages
from octavo_serve.surfaces.vectors.fields import Usage, VectorBody
from octavo_serve.surfaces.vectors.prompts import InputType


class EmbeddingRequest(VectorBody):
    """Body of /v1/embeddings: `input`, or the messages of a chat."""

    input: Prompt | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Integer, Field(ge=1)] | None = Field(
        default=None, description="Values to keep of each vector, the first ones."
    )
    normalize: bool | None = Field(default=None, description="Whether vectors have length 1; null: as the model says.")
    input_type: InputType | None = Field(
        default=None, description="What the texts are for: the model's prompt for that is put before them."
    )
    prompt_name: Name | None = Field(default=None, description="The same by the prompt's own name.")

    # of a chat
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Options | None = None


class Embedding(TypedDict):
    """One vector; base64 is of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    """Answer of /v1/embeddings."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: Usage
