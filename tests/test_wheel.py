"""The wheel holds what the packages hold, and its extras what they import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from octavo import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {
    "octavo": ROOT / "platform" / "octavo",
    "octavo_kernels": ROOT / "kernels" / "octavo_kernels",
    "octavo_serve": ROOT / "deployments" / "octavo_serve",
    "octavo_loadtest": ROOT / "loadtest" / "octavo_loadtest",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `make wheel` builds it."""
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        held = {name: packed.read(name) for name in packed.namelist() if ".dist-info/" not in name}
    files = {
        f"{package}/{path.relative_to(folder)}": path.read_bytes()
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held.keys() == files.keys()
    assert [name for name, content in held.items() if content != files[name]] == []
    assert held["octavo_serve/configs/quickstart.yaml"] == (ROOT / "configs" / "quickstart.yaml").read_bytes()


def test_the_version_is_said_in_one_way(wheel: Path) -> None:
    assert (PROJECT["version"], wheel.name) == (__version__, f"octavo-{__version__}-py3-none-any.whl")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


EXTRAS_OF = {
    "octavo": ["gpu", "transformers"],
    "octavo_kernels": ["gpu"],
    "octavo_serve": ["serve", "otel"],
    "octavo_loadtest": ["loadtest"],
}
"""Extras without which a package does less, or nothing."""
IMPORTED_AS = {
    "python-multipart": "python_multipart",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
COMES_WITH = {"pydantic": {"pydantic_core", "typing_extensions"}, "ray": {"grpc"}}


def provided(requirements: list[str]) -> set[str]:
    """Modules that requirements bring, as far as they are imported here."""
    names = [Requirement(text).name for text in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}.union(*(COMES_WITH.get(name, ()) for name in names))


def imported(package: str) -> set[str]:
    """Modules of other distributions that a package imports anywhere."""
    found = {name for path in PACKAGES[package].rglob("*.py") for name in imports(ast.parse(path.read_text()))}
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    base, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    used: set[str] = set()
    for package, needed in EXTRAS_OF.items():
        used |= (names := imported(package))
        assert names <= provided([*base, *(each for extra in needed for each in extras[extra])]), package
    declared = provided([*base, *(each for extra in ("serve", "otel", "gpu", "loadtest") for each in extras[extra])])
    assert declared - used <= set().union(*COMES_WITH.values())


def test_versions_are_pinned() -> None:
    pins = {plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = [*PROJECT["dependencies"], *(text for each in PROJECT["optional-dependencies"].values() for text in each)]
    assert {plain(Requirement(text).name) for text in asked} - pins == set()


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


TRY = """
import pathlib, sys
import octavo, octavo_serve.command.packaged as packaged
for module in (octavo, packaged):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
from octavo import LLM, SamplingParams
llm = LLM(packaged.quickstart_model()["source"], progress=False, kv_cache_bytes=2**25)
chat = [{"role": "user", "content": "What is the capital of France?"}]
print(llm.chat(chat, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)[0].outputs[0].text)
"""


@pytest.mark.slow
def test_it_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Octavo comes from the wheel; what it depends on, from the environment of this test. The kernels are not compiled,
    which would take half a minute: their sources lie beside them, as the first test says."""
    place = tmp_path / "venv"
    run("python", "-m", "venv", "--without-pip", str(place), here=Path(sys.executable).parent, folder=tmp_path)
    packages = next(place.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(packages)
    theirs = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    shown = [path for path in theirs.iterdir() if not path.name.lower().startswith(("octavo", "_octavo", "_editable"))]
    (packages / "beside.pth").write_text(f"{tmp_path / 'beside'}\n")
    (tmp_path / "beside").mkdir()
    for path in shown:
        if path.suffix != ".pth":
            (tmp_path / "beside" / path.name).symlink_to(path)
    here = place / "bin"
    assert run("python", "-c", TRY, here=here, folder=tmp_path) == "The capital of France is Paris."
    octavo = ["python", "-m", "octavo_serve.command.cli"]
    assert run(*octavo, "--version", here=here, folder=tmp_path) == f"octavo {__version__}"
    assert "smollm2-135m" in run(*octavo, "serve", "--print-config", here=here, folder=tmp_path)


def run(command: str, *arguments: str, here: Path, folder: Path) -> str:
    done = subprocess.run(
        [str(here / command), *arguments],
        cwd=folder,
        env=os.environ | {"OCTAVO_CPU_ISA": "reference", "OCTAVO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
