"""What is to run on a GPU, should one be at hand for half an hour, runs here as far as it can."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_engines_benchmark_runs_in_small(tmp_path):
    load(ROOT / "examples" / "benchmark_gpu.py").main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["tiny decode"]["batch 3"]["tokens_per_s"] > 0
    assert report["tiny host"]["batch 3"]["us"] > 0
    assert report["tiny prefill"]["of_matrix_rate"] > 0
    throughput = report["tiny throughput"]
    assert throughput["times transformers_generate"] > 0
    assert throughput["times transformers_continuous"] > 0
    assert "| tiny decode | batch 1 | ms" in (tmp_path / "gpu.md").read_text()


def test_the_script_runs_every_part_whatever_becomes_of_the_others(tmp_path):
    python = tmp_path / "python"
    cases = "*tests/gpu*) exit 3;; *kernels.bench*) exec sleep 60;;"
    python.write_text(f'#!/bin/sh\necho "$@"\ncase "$*" in {cases} esac\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "SECONDS_EACH": "3"}
    done = subprocess.run([ROOT / ".ci" / "gpu", "--tiny"], env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    codes = {line.split(":")[0]: int(line.split("exit code ")[1].split()[0]) for line in lines}
    assert codes == {"tests": 123, "kernels": 124, "engine": 0, "throughput": 0}
    assert "--tiny --device cpu" in (tmp_path / "out" / "engine.log").read_text()


WITHOUT_HYPOTHESIS = """
import sys, pytest
sys.modules["hypothesis"] = None
options = ["-q", "-o", "addopts=--import-mode=importlib"]
options += ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, "--collect-only", "-k", "gpu", *sys.argv[1:]]))
"""


def test_kernels_are_tested_where_there_is_no_hypothesis():
    """As on the machine of a borrowed GPU."""
    file = ROOT / "tests" / "kernels" / "octavo_kernels" / "test_rms_norm.py"
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", WITHOUT_HYPOTHESIS, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_rms_norm.py::" in done.stdout
