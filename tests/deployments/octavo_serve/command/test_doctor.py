"""What is missing is said with a remedy, and whether the quickstart can work by the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import ModelError
from octavo_serve.command import doctor
from octavo_serve.command.doctor import Check, look, run
from octavo_serve.command.machine import version


def found(what: str) -> Check:
    return next(check for check in look() if check.what == what)


def test_here_the_quickstart_can_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(as_json=True) == 0
    checks = json.loads(capsys.readouterr().out)
    assert {"packages", "serve's packages", "CPU", "C++ compiler", "memory", "GPU"} <= {each["what"] for each in checks}
    assert [each for each in checks if each["state"] != "ok" and not each["remedy"]] == []


def test_what_stops_the_quickstart_makes_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(source: str) -> None:
        raise ModelError("'package:a/b': package 'a' is not installed; try: pip install --no-deps a")

    monkeypatch.setattr(doctor, "check_source", missing)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (2**34, 2**29))
    monkeypatch.setattr(doctor, "version", lambda name: "2.59.1" if name == "ray" else version(name))
    assert run(as_json=False) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "ray is 2.59.1, not" in said
    assert "0.5 of 16.0 GiB are free" in said
    assert "is not installed pip install --no-deps a" in said
    assert "The quickstart cannot work: 3 to mend." in said


def test_no_compiler_is_slow_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("OCTAVO_KERNELS", raising=False)
    try:
        check = found("C++ compiler")
        monkeypatch.setattr(doctor, "brought", lambda level: Path(f"/kernels/octavo-{level}.so"))
        assert found("C++ compiler").state == "ok"
    finally:
        doctor.find_compiler.cache_clear()
    assert (check.state, check.remedy) == ("warn", "apt-get install g++")


def test_gpus_that_torch_cannot_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(doctor, "torch_cuda", lambda: None)
    assert found("GPU").remedy == "install torch for CUDA"
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "12.8")
    assert "torch for CUDA 12.8" in found("GPU").found


def test_folders_are_looked_at_without_making_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    assert found("hub's cache").state == "ok"
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "temporary_folder", lambda: tmp_path)
    assert found("cache folder").state == "warn"
    assert list(tmp_path.iterdir()) == []
