"""What every settings class is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base: unknown keys are errors at any depth, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
