"""The layout's traps stay shut: source roots without loose files, imports that load only what they should."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from octavo_serve.config.settings import load_settings

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "platform": "octavo",
    "kernels": "octavo_kernels",
    "deployments": "octavo_serve",
    "loadtest": "octavo_loadtest",
}


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter at the repository's root, which is then first on `sys.path`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("source_root", PACKAGES)
def test_a_source_root_holds_one_package_and_nothing_else(source_root: str) -> None:
    # an __init__.py here would shadow the standard library's platform, or Hugging Face's kernels
    assert [path.name for path in (ROOT / source_root).iterdir() if path.name != "__pycache__"] == [
        PACKAGES[source_root]
    ]


def test_no_package_files_under_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_standard_library_wins_over_our_folders() -> None:
    assert python("import platform; print(platform.system())")


def test_packages_are_typed() -> None:
    for source_root, package in PACKAGES.items():
        assert (ROOT / source_root / package / "py.typed").exists()


@pytest.mark.parametrize(
    "modules",
    ["octavo.routing.policy", "octavo.kvcache.block_pool", "octavo.request, octavo.config, octavo.block_hash"],
)
def test_decisions_load_no_torch(modules: str) -> None:
    assert python(f"import sys, {modules}; print('torch' in sys.modules)") == "False"


def test_the_engine_loads_no_ray() -> None:
    loaded = "print({'ray', 'fastapi', 'pydantic'} & {*sys.modules})"
    assert python(f"import sys, octavo, octavo_kernels, octavo.engine.async_engine; {loaded}") == "set()"


def test_private_ray_is_reached_from_one_file() -> None:
    private = re.compile(r"^\s*(?:from|import) ray\b.*[ .](?:_\w|core\b)", re.MULTILINE)
    files = (ROOT / "deployments").rglob("*.py")
    assert [file.name for file in files if private.search(file.read_text())] == ["ray_private.py"]


def test_the_gateway_loads_no_torch() -> None:
    assert python("import sys, octavo_serve.app; print('torch' in sys.modules)") == "False"


def test_the_command_line_is_light() -> None:
    loaded = python(
        "import sys, octavo_serve.command.cli; print({'ray', 'torch', 'fastapi', 'pydantic', 'httpx'} & {*sys.modules})"
    )
    assert loaded == "set()"


def names_of(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    """Qualified names of the functions and classes in a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name
            yield from names_of(node, f"{prefix}{node.name}.")


def test_the_way_of_a_request_names_functions_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    hops = re.findall(r"`([\w/]+\.py):([\w.]+)`", page)
    down = page.index("## The way of a request"), page.index("And back:")
    assert len(re.findall(r"^\| \d+ \|", page[slice(*down)], re.MULTILINE)) < 15
    for path, name in hops:
        (file,) = (root for source in PACKAGES if (root := ROOT / source / path).exists())
        assert name in names_of(ast.parse(file.read_text())), f"{path} has no {name}"
    assert len(hops) > 20


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_valid(config: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(config.read_text())
    ServeDeploySchema.model_validate(document)
    for application in document["applications"]:
        assert load_settings(application["args"]).models


LIBRARIES = "import transformers, bitsandbytes; from transformers.utils import is_kernels_available as known; "


@pytest.mark.slow
def test_transformers_and_bitsandbytes_import_at_the_root() -> None:
    assert python(LIBRARIES + "print(known())") == "False"


@pytest.mark.slow
def test_they_import_beside_hugging_faces_kernels(tmp_path: Path) -> None:
    """With the real `kernels` package installed it must be found, not our folder of that name."""
    package = tmp_path / "kernels"
    package.mkdir()
    names = "get_kernel, Device, LayerRepository, LocalLayerRepository, FuncRepository, LockedLayerRepository, Mode"
    package.joinpath("__init__.py").write_text(f"{names} = [type('Stub', (), {{}}) for _ in range(7)]\n")
    metadata = tmp_path / "kernels-0.12.3.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.3\n")
    code = LIBRARIES + "from kernels import get_kernel; import kernels; print(kernels.__file__)"
    assert python(code, PYTHONPATH=str(tmp_path)) == str(package / "__init__.py")
