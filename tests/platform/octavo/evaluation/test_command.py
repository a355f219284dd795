"""`octavo evaluate` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from octavo.evaluation.command import evaluate


@pytest.fixture
def notes():
    """What `run` wrote to stderr, call after call."""
    return []


@pytest.fixture
def run(text, notes):
    """`run(*arguments)` -> (exit code, what was printed)."""
    app = typer.Typer()
    app.command()(evaluate)

    def call(*arguments):
        given = ["--text", text, "--tokens", "300", "--window", "64", *arguments]
        result = CliRunner().invoke(app, [str(argument) for argument in given])
        notes.append(result.stderr)
        return result.exit_code, result.stdout or result.stderr

    return call


def test_within_the_bound(run, notes, tiny_model):
    code, output = run(tiny_model("llama2"), "--dtype", "bfloat16", "--max-kl", "0.1")
    assert code == 0, output
    for part in ("bfloat16", "float32", "295 positions in windows of 64", "perplexity", "first differs after"):
        assert part in output
    assert output.count("tokens/s") <= 1  # the engine's sentence, where the native code says one
    assert "with itself" not in notes[0]
    assert output.splitlines()[-1].endswith("is within the bound of 0.1")


def test_over_the_bound(run, tiny_model, scaled):
    bad = scaled(tiny_model("llama2"), "layers.2.mlp.down_proj", 3.0)
    code, output = run(bad, "--reference", tiny_model("llama2"), "--max-kl", "0.001")
    assert code == 1
    assert "layer 2 differs most" in output
    assert output.splitlines()[-1].endswith("is over the bound of 0.001")


def test_json_has_every_figure(run, notes, tiny_model):
    code, output = run(tiny_model("llama2"), "--dtype", "float32", "--json", "--layers")
    found = json.loads(output)
    assert code == 0
    assert "in float32 with itself" in notes[0]
    assert found["divergence"]["mean_kl"] == 0
    assert found["greedy"] == [None] * 4
    assert list(found["layers"]) == ["the embedding", "layer 0", "layer 1", "layer 2", "the head"]
    assert found["passed"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/model.gguf"], "no model at '/nowhere/model.gguf'"),
        (["MODEL", "--text", "nothing.txt"], "the text nothing.txt cannot be read"),
        (["MODEL", "--dtype", "float8"], "dtype must be"),
        (["MODEL", "--window", "9999"], "window is 9999"),
    ],
)
def test_bad_input_is_one_sentence(run, tiny_model, arguments, message):
    code, output = run(*(tiny_model("llama2") if part == "MODEL" else part for part in arguments))
    assert code == 2
    assert output.splitlines()[-1].startswith("Error: ")
    assert message in output


def test_importing_the_command_loads_nothing_heavy():
    code = "import sys, octavo.evaluation.command; print({'torch', 'ray', 'numpy', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
