"""The list of families is the records'; nothing beside a record names its family."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from octavo.models.families.supported import supported
from octavo.models.families.table import RECORDS

ROOT = Path(__file__).parents[5]
SOURCES = [ROOT / "platform" / "octavo", ROOT / "kernels" / "octavo_kernels", ROOT / "deployments" / "octavo_serve"]
RECORDS_FOLDER = ROOT / "platform" / "octavo" / "models" / "families"
OTHERS_NAMES = [
    "octavo/text/",  # llama.cpp names tokenizers by families, and response templates are data by family
    "octavo/models/encoder_families.py",  # records of encoders
    "octavo/models/weights/encoder_names.py",
    "octavo_serve/surfaces/",  # what clients' requests spell
]
SCALING = "llama3"  # a kind of rope scaling, which other families have too


def names() -> set[str]:
    found = {re.split(r"[_\d]", family.model_type)[0] for family in RECORDS}
    return found - {"gpt", "seed", "smollm"} | {"gpt2", "gptj", "gpt_neox", "seed_oss", "smollm3"}


def spelled(tree: ast.AST) -> Iterator[str]:
    """Identifiers and texts of a module, but not those that explain."""
    explains = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str() as text) if id(node) not in explains:
                yield text
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name


def test_no_familys_name_is_outside_its_record() -> None:
    pattern = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(names()))})(?![a-z.])")
    found = []
    for path in (path for source in SOURCES for path in sorted(source.rglob("*.py"))):
        name = str(path.relative_to(ROOT)).split("/", 1)[1]
        if path.parent != RECORDS_FOLDER and not name.startswith(tuple(OTHERS_NAMES)):
            texts = spelled(ast.parse(path.read_text()))
            found += [f"{name}: {text[:60]}" for text in texts if pattern.search(text.lower().replace(SCALING, ""))]
    assert found == []


def test_every_record_is_listed_with_its_files() -> None:
    rows = {row.model_type: row for row in supported()}
    assert len(rows) == len(RECORDS)
    assert rows["llama"].gguf == "llama"
