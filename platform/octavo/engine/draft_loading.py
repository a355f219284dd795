"""Loads a draft model beside the model that it drafts for."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.engine.drafter import Drafter
from octavo.errors import ConfigError
from octavo.source import Source, resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer


def load_drafter(source: Source, config: EngineConfig, tokenizer: Tokenizer) -> tuple[Drafter, EngineConfig]:
    """Load the draft model that the settings name, and measure it.

    Args:
        source, tokenizer: of the model that it drafts for.

    Returns:
        it, and the settings with which that model is to be loaded.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or has another tokenizer.
    """
    from octavo.execution.load import load_draft

    assert config.draft is not None
    draft = resolve_source(config.draft)
    if (piece := tokenizer.differs_at(load_tokenizer(draft))) is not None:
        raise ConfigError(
            f"speculation.draft {draft.name!r} has another tokenizer than {source.name!r}: {piece!r} is not the same "
            "token; use a smaller model of the same family"
        )
    executor, left = load_draft(source, draft, config)
    drafter = Drafter(executor, config.block_size, caching=config.enable_prefix_caching)
    drafter.measure()
    return drafter, left
