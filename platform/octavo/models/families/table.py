"""Every family there is."""

from __future__ import annotations

from octavo.models.families import (
    bloom,
    cohere,
    deepseek,
    dots,
    ernie_moe,
    exaone,
    gemma,
    glm,
    gpt,
    gpt_oss,
    granite,
    lfm,
    like_llama,
    llama,
    minicpm,
    mixtral,
    mpt,
    olmo,
    opt,
    phi,
    qwen,
    qwen_hybrid,
    renamed,
    smollm,
    stablelm,
    starcoder,
)
from octavo.models.families.record import Family

RECORDS: tuple[Family, ...] = (
    *llama.FAMILIES,
    *mixtral.FAMILIES,
    *qwen.FAMILIES,
    *qwen_hybrid.FAMILIES,
    *gemma.FAMILIES,
    *gpt_oss.FAMILIES,
    *mpt.FAMILIES,
    *like_llama.FAMILIES,
    *renamed.FAMILIES,
    *phi.FAMILIES,
    *glm.FAMILIES,
    *dots.FAMILIES,
    *deepseek.FAMILIES,
    *minicpm.FAMILIES,
    *ernie_moe.FAMILIES,
    *olmo.FAMILIES,
    *granite.FAMILIES,
    *lfm.FAMILIES,
    *smollm.FAMILIES,
    *cohere.FAMILIES,
    *exaone.FAMILIES,
    *stablelm.FAMILIES,
    *gpt.FAMILIES,
    *starcoder.FAMILIES,
    *bloom.FAMILIES,
    *opt.FAMILIES,
)

FAMILIES = {family.model_type: family for family in RECORDS}
"""By `model_type`."""

OUTER = {outer: family for family in RECORDS for outer in family.outer}
"""By the type of a config that holds a family's as its `text_config`."""

ARCHITECTURES = {family.gguf.architecture: family for family in reversed(RECORDS) if family.gguf is not None}
"""By GGUF's name; the first of several."""


def family_of(model_type: object) -> Family | None:
    """The family of configs of a type; None where it is none of decoders."""
    return FAMILIES.get(model_type) or OUTER.get(model_type) if isinstance(model_type, str) else None
