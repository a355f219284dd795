"""Fields that requests for vectors, scores and classes share: OpenAI's, with vLLM's extensions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_PROMPT_TOKENS
from octavo_serve.api.fields import Integer, Name
from octavo_serve.api.pooling import Asking
from octavo_serve.api.telemetry import Operation
from octavo_serve.api.texts import Cut

Truncate = Annotated[Integer, Field(ge=-1, le=MAX_PROMPT_TOKENS)]
Side = Literal["left", "right"]


class VectorBody(Body):
    """What all of them have; None means the default."""

    flat: ClassVar[tuple[str, ...]] = ("input",)

    model: Name | None = None
    user: Name | None = Field(default=None, description="Keeps a user's requests together where no header does.")
    truncate_prompt_tokens: Truncate | None = Field(
        default=None,
        description="Tokens of each text that are read; -1: as many as the model reads. Without it a text that is too "
        "long is refused.",
    )
    truncation_side: Side | None = Field(default=None, description='"left" reads the last tokens, not the first.')
    add_special_tokens: bool | None = Field(default=None, description="Whether texts get the model's special tokens.")
    cache_salt: Name | None = None
    priority: Integer | None = None
    request_id: Name | None = Field(default=None, description="Becomes part of the answer's id.")

    @property
    def cut(self) -> Cut:
        """How texts are made to fit."""
        return Cut(most=self.truncate_prompt_tokens, keeps_end=self.truncation_side == "left")

    def asking(self, kind: str, operation: Operation, param: str) -> Asking:
        """Who asks what."""
        return Asking(
            kind=kind if self.request_id is None else f"{kind}-{self.request_id}",
            operation=operation,
            model=self.model,
            param=param,
            cut=self.cut,
            add_special_tokens=self.add_special_tokens is not False,
            session=self.user or "",
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
        )


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


def usage(prompt_tokens: int) -> Usage:
    """What a request without an output has used."""
    return {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
