"""examples/quickstart.ipynb runs from top to bottom, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", ()))


def test_what_is_kept_is_small_and_without_errors() -> None:
    """The outputs in the repository are of one run, in order, and name nothing of the machine that it ran on."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 100_000
    assert not re.search(r"/home/|/root/|/work/|/usr/", NOTEBOOK.read_text())


@pytest.mark.slow
def test_it_runs_from_top_to_bottom() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=folder).execute()
    said = "\n".join(text_of(cell) for cell in notebook.cells)
    assert "The capital of France is Paris" in said
    assert "llama-8b" in said
    assert "ended with exit code 0" in said
    (port,) = set(re.findall(r"http://127\.0\.0\.1:(\d+)/v1 ", said))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    drawn = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 1
