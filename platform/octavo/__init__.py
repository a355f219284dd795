"""Octavo: open language models on a paged-KV engine. `from octavo import LLM, SamplingParams`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.beams import BeamSearch as BeamSearch
    from octavo.config import EngineConfig as EngineConfig
    from octavo.constraint import StructuredOutputs as StructuredOutputs
    from octavo.engine.llm import LLM as LLM
    from octavo.engine.llm import LoRARequest as LoRARequest
    from octavo.engine.llm_beams import BeamSearchParams as BeamSearchParams
    from octavo.engine.llm_pooling import PoolingParams as PoolingParams
    from octavo.request import RequestOutput as RequestOutput
    from octavo.request import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "BeamSearch",
    "BeamSearchParams",
    "EngineConfig",
    "LoRARequest",
    "PoolingParams",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
]

# Loaded on first use, so that `import octavo.routing` in a gateway or a controller loads no torch.
_HOMES = {
    "LLM": "octavo.engine.llm",
    "BeamSearch": "octavo.beams",
    "BeamSearchParams": "octavo.engine.llm_beams",
    "EngineConfig": "octavo.config",
    "LoRARequest": "octavo.engine.llm",
    "PoolingParams": "octavo.engine.llm_pooling",
    "RequestOutput": "octavo.request",
    "SamplingParams": "octavo.request",
    "StructuredOutputs": "octavo.constraint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
