"""The comparison of instruction counts, and that what is counted runs. The counting itself is `make bench-count`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from octavo_kernels.native.library import Library, supported_levels

SCRIPT = Path(__file__).parents[1] / ".ci" / "counts.py"
EXPECTED = {"one step": 1_000_000, "another": 2_000_000}


@pytest.fixture(scope="module")
def counts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("counts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["counts"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EXPECTED)
def test_a_planted_slowdown_of_5_percent_is_a_fault(counts: ModuleType, name: str) -> None:
    (said,) = counts.differences(EXPECTED, EXPECTED | {name: EXPECTED[name] * 105 // 100})
    assert said.startswith(f"{name}: +5.0% instructions: it became slower")


@pytest.mark.parametrize("factor", [0.971, 1.0, 1.029])
def test_what_is_within_3_percent_is_none(counts: ModuleType, factor: float) -> None:
    assert counts.differences(EXPECTED, {name: int(n * factor) for name, n in EXPECTED.items()}) == []


def test_what_became_faster_is_to_be_written_down(counts: ModuleType) -> None:
    (said,) = counts.differences(EXPECTED, EXPECTED | {"one step": 900_000})
    assert "-10.0% instructions: it became faster, so --write them" in said


def test_a_step_that_only_one_side_has(counts: ModuleType) -> None:
    found = {"another": 2_000_000, "a new one": 5}
    assert counts.differences(EXPECTED, found) == [
        "a new one: only this run has it",
        "one step: only counts.json has it",
    ]
    assert counts.table(EXPECTED, found).splitlines()[2].split() == ["a", "new", "one", "0", "5"]


def test_a_dump_of_callgrind(counts: ModuleType, tmp_path: Path) -> None:
    dump = tmp_path / "counts.1"
    dump.write_text("# callgrind format\ndesc: Trigger: Client Request: Q8_0, 1 sequence\n\nsummary: 4707420\n\nob=x\n")
    assert counts.read(dump) == ("Q8_0, 1 sequence", 4_707_420)
    dump.write_text("# callgrind format\n")
    with pytest.raises(SystemExit, match="no dump"):
        counts.read(dump)


def main(counts: ModuleType, monkeypatch: pytest.MonkeyPatch, found: dict[str, int], compiler: str = "g++ 1") -> object:
    """The script's exit code with these counts in valgrind's place."""
    monkeypatch.setattr(counts, "count", lambda: found)
    monkeypatch.setattr(counts, "compiler", lambda: compiler)
    monkeypatch.setattr(counts, "what_is_missing", lambda: None)
    monkeypatch.setattr(sys, "argv", ["counts.py"])
    try:
        counts.main()
    except SystemExit as ended:
        return ended.code
    return None


def test_the_exit_code(
    counts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"compiler": "g++ 1", "level": "avx2", "instructions": EXPECTED}))
    monkeypatch.setattr(counts, "FILE", file)
    assert main(counts, monkeypatch, EXPECTED) == 0
    assert main(counts, monkeypatch, EXPECTED | {"another": 2_100_000}) == 1
    assert "it became slower" in capsys.readouterr().out
    assert main(counts, monkeypatch, {}, "g++ 2") is None  # another compiler's counts say nothing
    assert "Not compared" in capsys.readouterr().out


def test_the_steps_run_and_are_those_that_are_committed(counts: ModuleType) -> None:
    library = Library(supported_levels()[-1])
    found = []
    for name, step in counts.steps(library):
        step()
        found.append(name)
    committed = json.loads((SCRIPT.parent / "counts.json").read_text())
    assert sorted(found) == sorted(committed["instructions"])
    assert committed["level"] == counts.LEVEL
