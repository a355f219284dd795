"""Files that nobody meant well: whatever is in them, `ModelError` is all that comes out.

Every test takes files that load, changes some of what is in them, and reads them as a start does. `make fuzz` runs the
same tests for longer.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.source_spec import read_config, read_spec
from octavo.planning.reading import read_shape
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer

bounded = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)

STRANGE = st.sampled_from(
    [None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**70, -(2**70), 10**400, 0.0, -0.5, 1.5, 1e308, float("inf"),
     float("nan"), "", "a", "1", "llama3", "\ud800", "\x00", "x" * 5000, [], [1], ["a"], [None], [[]], [2**70], {},
     {"a": 1}, {"content": 5}, {"": None}, {"1": {"content": "a"}}, {"x": {"content": "a"}}, [{"name": "a"}]]
)  # fmt: skip
"""Values that one key or another does not expect."""


def read_all(path: Path) -> None:
    """What a start reads, and `octavo plan`; only `ModelError` may come of it."""
    for read in (read_config, read_spec, load_tokenizer, _load, _pack):
        with suppress(ModelError):
            read(resolve_source(str(path)))
    with suppress(ModelError):
        read_shape(str(path))


def _load(source: Any) -> None:
    if read_spec(source).max_position_embeddings <= 1 << 20:  # longer tables are the engine's to bound
        load_model(source)


def _pack(source: Any) -> None:
    if read_spec(source).max_position_embeddings <= 1 << 20:
        load_packed(source, dtype="float32")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path; `...` takes it out."""
    if not path:
        return {} if new is ... else new
    copy, key = (dict(value), path[0]) if isinstance(value, dict) else (list(value), path[0])
    if len(path) == 1 and new is ...:
        del copy[key]
    else:
        copy[key] = changed(value[key], path[1:], new)
    return copy


@st.composite
def edits(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that differ from `content` in a few places: other numbers, pieces left out or doubled, the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["byte", "word", "cut", "drop", "double"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "word":
                data[at : at + 8] = struct.pack("<Q", draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in Hugging Face layout with every small file that one can have."""
    folder = shutil.copytree(tiny_model("llama3"), tmp_path_factory.mktemp("hostile") / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"additional_special_tokens": ["<tool>"], "added_tokens_decoder": {"259": {"content": "<think>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 260}))
    return folder


SMALL = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
]


@bounded
@given(data=st.data())
def test_any_value_in_the_small_files(folder, data):
    path = folder / data.draw(st.sampled_from(SMALL))
    before = path.read_text()
    content = json.loads(before)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(content)))
        content = changed(content, place, data.draw(st.one_of(st.just(...), STRANGE)))
    try:
        path.write_text(json.dumps(content))
        read_all(folder)
    finally:
        path.write_text(before)


FAMILIES = ["llama2", "llama_yarn", "gemma3", "qwen2_windows", "qwen2_moe", "mixtral", "mpt"]


@bounded
@given(data=st.data())
def test_any_value_in_the_config_of_any_family(tiny_model, tmp_path, data):
    content = json.loads((tiny_model(data.draw(st.sampled_from(FAMILIES))) / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(content)))
        content = changed(content, place, data.draw(st.one_of(st.just(...), STRANGE)))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    for read in (lambda: read_spec(resolve_source(str(tmp_path))), lambda: read_shape(str(path))):
        with suppress(ModelError):
            read()


@bounded
@given(data=st.data())
def test_any_bytes_in_the_small_files(folder, data):
    path = folder / data.draw(st.sampled_from([*SMALL, "tokenizer.json"]))
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(edits(before)))
        read_all(folder)
    finally:
        path.write_bytes(before)


@bounded
@given(data=st.data())
def test_any_value_in_tokenizer_json(folder, data):
    path = folder / "tokenizer.json"
    before = path.read_text()
    content = json.loads(before)
    outer = [place for place in places(content) if place[:2] != ("model", "vocab")]
    content = changed(content, data.draw(st.sampled_from(outer)), data.draw(st.one_of(st.just(...), STRANGE)))
    try:
        path.write_text(json.dumps(content))
        with suppress(ModelError):
            load_tokenizer(resolve_source(str(folder))).encode("Hello, <|im_end|> world 123")
    finally:
        path.write_text(before)


@bounded
@given(data=st.data())
def test_any_bytes_in_a_safetensors_header(folder, data):
    path = folder / "model.safetensors"
    before = path.read_bytes()
    length = 8 + struct.unpack("<Q", before[:8])[0]
    header = data.draw(edits(before[:length]))
    if data.draw(st.booleans()) and len(header) > 8:  # a length that is true, so that what follows is read
        header = struct.pack("<Q", len(header) - 8) + header[8:]
    try:
        path.write_bytes(header + before[length:])
        read_all(folder)
    finally:
        path.write_bytes(before)


@bounded
@given(data=st.data())
def test_any_value_in_a_safetensors_header(folder, data):
    path = folder / "model.safetensors"
    before = path.read_bytes()
    length = struct.unpack("<Q", before[:8])[0]
    content = json.loads(before[8 : 8 + length])
    place = data.draw(st.sampled_from(places(content)))
    text = json.dumps(changed(content, place, data.draw(st.one_of(st.just(...), STRANGE)))).encode()
    try:
        path.write_bytes(struct.pack("<Q", len(text)) + text + before[8 + length :])
        read_all(folder)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def gguf_bytes(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")


def write_tiny_gguf(path: Path) -> bytes:
    """A model of one layer and 20 tokens with a tokenizer: a header of 2 kB."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    for key, value in (sizes | {"attention.head_count": 2, "attention.head_count_kv": 1}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.scale_linear", 2.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*"abcdefghijklmnop", "ab", "abc", "<|im_end|>", "<s>"])
    writer.add_token_types([1] * 18 + [3, 3])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_eos_token_id(18)
    writer.add_bos_token_id(19)
    writer.add_chat_template("{{ messages }}")
    shapes = {"token_embd": (20, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
              "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8),
              "blk.0.ffn_gate": (8, 8), "blk.0.ffn_up": (8, 8), "blk.0.ffn_down": (8, 8)}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_the_files_are_well_before_they_are_changed(folder, gguf_bytes, tmp_path):
    (tmp_path / "model.gguf").write_bytes(gguf_bytes)
    for path in (folder, tmp_path / "model.gguf"):
        source = resolve_source(str(path))
        assert load_model(source).spec == read_spec(source) == load_packed(source, dtype="float32")[0]
        assert load_tokenizer(source).eos_token_ids
        assert read_shape(str(path)).vocab_size in (300, 20)


@bounded
@given(data=st.data())
def test_any_bytes_in_a_gguf_file(gguf_bytes, tmp_path, data):
    (tmp_path / "model.gguf").write_bytes(data.draw(edits(gguf_bytes[:-2000])) + gguf_bytes[-2000:])
    read_all(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", [*SMALL, "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe{}", b"null", b"{" + b" " * 10])
def test_nested_and_broken_json(folder, tmp_path, name, content):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / name).write_bytes(content)
    if "index" in name:
        (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    read_all(copy)


def _as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _as_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def _as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("become", [_as_folder, _as_loop, _as_pipe])
@pytest.mark.parametrize("name", [*SMALL, "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_what_is_no_file(folder, tmp_path, name, become):
    copy = shutil.copytree(folder, tmp_path / "model")
    become(copy / name)
    read_all(copy)
