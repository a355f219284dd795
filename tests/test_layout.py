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


KERNELS = "octavo_kernels"
TESTED_UNDER_ANOTHER_NAME = {
    # what is imported, and what a command line is made of
    "octavo/__init__.py": "test_layout.py",
    "octavo_loadtest/__main__.py": "loadtest/octavo_loadtest/test_cli.py",
    # a whole that its parts' tests drive, each from another side
    "octavo/engine/freed.py": "platform/octavo/engine/test_served_engine.py",
    "octavo/models/replacement.py": "platform/octavo/engine/test_served_engine.py",
    "octavo_serve/gateway/hashing.py": "deployments/octavo_serve/gateway/test_keeper.py",
    "octavo_serve/gateway/request_run.py": "deployments/octavo_serve/gateway/test_shard_client.py",
    "octavo_serve/wire/weights.py": "deployments/octavo_serve/gateway/test_keeper.py",
    "octavo/kvcache/slot_memory.py": "platform/octavo/kvcache/test_layered_tier.py",
    "octavo_serve/api/folders.py": "deployments/octavo_serve/surfaces/weights/test_operations.py",
    "octavo/engine/engine.py": "platform/octavo/engine/test_scheduler.py",
    "octavo/engine/sequence.py": "platform/octavo/engine/test_scheduler.py",
    "octavo/engine/stats.py": "platform/octavo/engine/test_load_meter.py",
    "octavo/rehearsal/engine_replay.py": "platform/octavo/engine/test_recorded.py",
    "octavo/rehearsal/traffic.py": "platform/octavo/rehearsal/test_whatif.py",
    "octavo/errors.py": "deployments/octavo_serve/api/test_failures.py",
    "octavo/step.py": "platform/octavo/engine/test_batch.py",
    "octavo_serve/wire/blocks.py": "deployments/octavo_serve/shard/test_sharing.py",
    "octavo/kvcache/tier.py": "platform/octavo/kvcache/test_slot_tier.py",
    # what recurrent layers carry: by what engines say from it
    "octavo/kvcache/sequence_state.py": "platform/octavo/engine/test_recurrent.py",
    "octavo/kvcache/state_pool.py": "platform/octavo/engine/test_recurrent.py",
    "octavo/execution/state_storage.py": "platform/octavo/engine/test_recurrent_models.py",
    "octavo/models/recurrent_spec.py": "platform/octavo/engine/test_recurrent_models.py",
    "octavo_kernels/state_use.py": "kernels/octavo_kernels/test_short_conv.py",
    # executors and what loads them: held against each other, by what they compute
    "octavo/execution/executor.py": "platform/octavo/execution/test_native_executor.py",
    "octavo/execution/kv_blocks.py": "platform/octavo/engine/test_disk_cache.py",
    "octavo/execution/load.py": "platform/octavo/execution/test_native_executor.py",
    "octavo/execution/local.py": "platform/octavo/execution/test_capacity.py",
    "octavo/execution/parallel.py": "platform/octavo/execution/test_ranks.py",
    "octavo/execution/parts.py": "platform/octavo/evaluation/test_layers.py",
    "octavo/execution/tensor_treatment.py": "platform/octavo/execution/test_treatment.py",
    "octavo/execution/torch_executor.py": "platform/octavo/execution/test_graphs.py",
    "octavo/execution/transfer.py": "platform/octavo/execution/test_sampler.py",
    # from a file to weights: held against transformers, model by model
    "octavo/models/weights/split.py": "platform/octavo/models/weights/test_safetensors_files.py",
    "octavo/models/encoder_spec.py": "platform/octavo/models/test_encoder_families.py",
    "octavo/models/packed_encoder.py": "platform/octavo/execution/test_native_encoder.py",
    "octavo/models/packing.py": "platform/octavo/models/test_packed.py",
    "octavo/models/source_spec.py": "platform/octavo/models/test_load.py",
    "octavo/models/weights/adapted.py": "platform/octavo/models/test_adapters.py",
    "octavo/models/spec.py": "platform/octavo/models/families/test_reading.py",
    "octavo/models/gguf_metadata.py": "platform/octavo/models/test_gguf_config.py",
    "octavo/models/weights/encoder_layout.py": "platform/octavo/models/test_encoder.py",
    "octavo/models/weights/encoder_names.py": "platform/octavo/models/test_encoder_families.py",
    "octavo/models/weights/bitsandbytes.py": "platform/octavo/models/test_quantization.py",
    "octavo/models/weights/layout.py": "platform/octavo/models/test_parallel.py",
    "octavo/models/weights/quantized.py": "platform/octavo/models/test_quantization.py",
    "octavo_kernels/decoder/__init__.py": "platform/octavo/models/test_packed.py",
    "octavo/planning/report.py": "platform/octavo/planning/test_command.py",
    # needs Serve, a replica's context and other processes: tested where these run
    "octavo_serve/command/chat/talk.py": "deployments/octavo_serve/command/chat/test_offline.py",
    "octavo_serve/gateway/gateway.py": "deployments/octavo_serve/test_multi_model.py",
    "octavo_serve/shard/shard.py": "deployments/octavo_serve/test_serving.py",
    "octavo_serve/shard/tensor_parallel.py": "deployments/octavo_serve/test_cluster.py",
    # a stream, by what comes out of it
    "octavo_serve/http/streams.py": "deployments/octavo_serve/http/test_app.py",
    # batches and their files, as OpenAI's client sees them
    "octavo_serve/command/batch/command.py": "deployments/octavo_serve/command/batch/test_offline.py",
    "octavo_serve/api/batches/batches.py": "deployments/octavo_serve/surfaces/batches/test_files.py",
    "octavo_serve/api/batches/nouns.py": "deployments/octavo_serve/surfaces/batches/test_files.py",
    "octavo_serve/api/batches/runner.py": "deployments/octavo_serve/surfaces/batches/test_operations.py",
    "octavo_serve/api/batches/store.py": "deployments/octavo_serve/surfaces/batches/test_operations.py",
    "octavo_serve/api/batches/work.py": "deployments/octavo_serve/surfaces/batches/test_operations.py",
    "octavo_serve/surfaces/batches/form.py": "deployments/octavo_serve/surfaces/batches/test_files.py",
    "octavo_serve/surfaces/batches/schemas.py": "deployments/octavo_serve/surfaces/batches/test_operations.py",
    "octavo_serve/api/database.py": "deployments/octavo_serve/api/test_records.py",
    "octavo_serve/http/traced.py": "deployments/octavo_serve/gateway/test_spans.py",
    "octavo_serve/api/genai.py": "deployments/octavo_serve/gateway/test_spans.py",
    "octavo_serve/surfaces/openai/schemas.py": "deployments/octavo_serve/http/test_describe.py",
}
"""Modules without a test of the same path, and the test that drives each."""

DRIVEN_BY_ONE_TEST = {"octavo/models/families/": "platform/octavo/models/families/test_reading.py"}
"""Folders whose modules are one another's like; the parametrised test that drives every one without its own."""


def mirror(module: Path) -> Path:
    """Where a module's test is: the same path below tests; a kernel's is named for its op's folder."""
    source_root, package, *inside = module.relative_to(ROOT).parts
    stem = module.stem
    if package == KERNELS and len(inside) == 2:
        native = ROOT / "tests" / source_root / package / inside[0] / f"test_{stem}.py"
        inside, stem = ([inside[1]], inside[0]) if not native.exists() else (inside, stem)
    return Path("tests", source_root, package, *inside[:-1], f"test_{stem}.py")


def modules_with_functions() -> list[Path]:
    """Modules that do something; those of types and constants alone are held by what uses them."""
    found = [path for root, package in PACKAGES.items() for path in sorted((ROOT / root / package).rglob("*.py"))]
    defs = ast.FunctionDef, ast.AsyncFunctionDef
    return [path for path in found if any(isinstance(node, defs) for node in ast.walk(ast.parse(path.read_text())))]


def test_tests_mirror_the_sources() -> None:
    untested, excused = [], set()
    for module in modules_with_functions():
        name = "/".join(module.relative_to(ROOT).parts[1:])
        if name in TESTED_UNDER_ANOTHER_NAME:
            excused.add(name)
            assert not (ROOT / mirror(module)).exists(), f"{name} has a test now: take it off the list"
        elif not (ROOT / mirror(module)).exists() and not name.startswith(tuple(DRIVEN_BY_ONE_TEST)):
            untested.append(f"{name} needs {mirror(module)}")
    assert untested == []
    assert set(TESTED_UNDER_ANOTHER_NAME) == excused
    others = [*TESTED_UNDER_ANOTHER_NAME.values(), *DRIVEN_BY_ONE_TEST.values()]
    assert [test for test in others if not (ROOT / "tests" / test).exists()] == []


CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)")
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|cpp|h|md|yaml|json|sh|html)|test_\w+\.py|\.ci/\w+)`")
NO_FILES = {"platform/__init__.py", "kernels/octavo_kernels/OP/gpu.py"}  # one must not be, one stands for many
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """Links from where the page lies; paths in backquotes from the root, a package or a folder of tests."""
    text = page.read_text()
    links = [link for link in LINK.findall(CODE.sub("", text)) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    tops = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in (".venv", ".git")]
    files = {f"/{path.relative_to(ROOT)}" for top in tops for path in top.rglob("*.*")}
    named = [name for name in NAMED.findall(text) if name not in NO_FILES and not (ROOT / name).exists()]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


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


def test_the_gateway_loads_no_torch_and_no_exporter_of_traces() -> None:
    loaded = python("import sys, octavo_serve.app; print({'torch', 'opentelemetry.exporter.otlp'} & {*sys.modules})")
    assert loaded == "set()"


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
