"""YAML: each mistake is one sentence with its place, and no file costs more than it is long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo_serve.config.yaml_file import LARGEST_FILE, parse_yaml, read_yaml

LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))])

WRONG: list[tuple[bytes, str]] = [
    (b"a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is there twice"),
    (b"a: {b: 1, b: 2}", "line 1, column 11: the key 'b' is there twice"),
    (b"a:\n\tb: 1", "line 2, column 1: found character '\\t'"),
    (b"a: [1", "line 1, column 6"),
    (b"a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
    (b"a: &x [*x]", "a value contains itself"),
    (b"a: *nothing", "found undefined alias"),
    (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    (b"? [1]\n: 2", "found unhashable key"),
    (LAUGHS.encode(), "more than 100000 values"),
    (b"[" * 50_000, "nested too deeply"),
    (b"a: " + b"[" * 2_000 + b"]" * 2_000, "nested too deeply"),
    (b"- " * 50_000, "nested too deeply"),
    (b"\xff\xfe", "byte 0 is not UTF-8"),
    (b"a: \x00", "special characters are not allowed"),
    (b"a: 2026-13-45", "month must be in 1..12"),
    (b"a: 1" + b"0" * 5_000, "cannot be read: "),
]


@pytest.mark.parametrize(("content", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_or_too_large_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (LARGEST_FILE + 1))
    for path, sentence in ((large, "at most 131072 bytes"), (tmp_path, "directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(ConfigError, match=sentence):
            read_yaml(path)
    large.write_bytes(b"#" * LARGEST_FILE)
    assert read_yaml(large) is None


def test_a_key_may_be_merged_and_overridden() -> None:
    text = b"\xef\xbb\xbfbase: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\n"
    assert parse_yaml(text)["mine"] == {"a": 1, "b": 3}


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False)
documents = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=20
)


@given(documents)
def test_what_is_right_is_read_as_it_is(document: Any) -> None:
    assert parse_yaml(yaml.safe_dump(document).encode()) == document


@given(st.text("ab:[]{}-&*!<>|'\"#%@`, \n\t0", max_size=60))
def test_any_text_is_a_value_or_one_sentence(text: str) -> None:
    try:
        parse_yaml(text.encode())
    except ConfigError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
