"""Documents: texts, or objects that hold one."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.rerank.schemas import AnyRerankRequest


def test_documents_are_texts() -> None:
    body = parse(AnyRerankRequest, {"query": "a", "documents": ["b", {"text": "c", "title": "d"}]})
    assert body.documents == ["b", "c"]
    for wrong in ("b", [1], [["b"]], [{}]):
        with pytest.raises(BadRequest, match="documents must be"):
            parse(AnyRerankRequest, {"query": "a", "documents": wrong})
