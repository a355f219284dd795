"""What is put before a text."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest
from octavo.pooling import PoolingInfo
from octavo_serve.surfaces.vectors.prompts import prompt_of, prompted

INFO = PoolingInfo(prompts={"query": "q: ", "passage": "p: ", "other": "o: "}, default_prompt="other")


def test_names_and_kinds() -> None:
    assert prompt_of(INFO, "query") == prompt_of(INFO, None, "search_query") == prompt_of(INFO, None, "query") == "q: "
    assert prompt_of(INFO, None, "search_document") == prompt_of(INFO, None, "document") == "p: "
    assert prompt_of(INFO, None, "clustering") == ""
    assert (prompt_of(INFO), prompt_of(PoolingInfo())) == ("o: ", "")
    with pytest.raises(BadRequest, match="no prompt 'x': it has 'query', 'passage', 'other'"):
        prompt_of(INFO, "x")
    with pytest.raises(BadRequest, match="no prompt 'x': it has none"):
        prompt_of(PoolingInfo(), "x")


def test_before_texts_alone() -> None:
    assert prompted(["a", ""], INFO, "input", "query") == ["q: a", ""]
    assert prompted(["a"], INFO, "input") == ["o: a"]
    assert prompted([[1]], INFO, "input") == [[1]]
    with pytest.raises(BadRequest, match="send texts"):
        prompted([[1]], INFO, "input", "query")
