"""Every setting by its path, with the docstring's sentence."""

from __future__ import annotations

import dataclasses

from octavo.config import EngineConfig
from octavo_serve.config.reference import Setting, settings
from octavo_serve.config.settings import ModelSettings

SILENT = {"models", "gateway", "router"}  # what their settings say, says it


def setting(*path: str) -> Setting:
    return next(each for each in settings() if each.path == path)


def test_every_setting_of_the_classes_is_there() -> None:
    paths = [each.path for each in settings()]
    assert len(paths) == len(set(paths))
    assert {path[1] for path in paths if path[:1] == ("models",) and len(path) == 2} == set(ModelSettings.model_fields)
    engine = {path[2] for path in paths if path[:2] == ("models", "engine") and len(path) == 3}
    assert engine == {field.name for field in dataclasses.fields(EngineConfig)}


def test_every_setting_says_what_it_is() -> None:
    mute = [".".join(each.path) for each in settings() if not each.says]
    assert [name for name in mute if name not in SILENT and not name.startswith("client_priority.")] == []


def test_kinds_defaults_and_sentences() -> None:
    length = setting("models", "engine", "max_model_len")
    assert (length.kinds, length.default) == ((int, type(None)), None)
    assert length.says.startswith("most tokens of one sequence, prompt and output; None takes")
    assert setting("models", "engine", "dtype").kinds == ("auto", "float32", "bfloat16", "float16")
    assert list in setting("cors_origins").kinds
    assert setting("models", "replicas", "zero_after").default == 60.0
    period = setting("models", "health_check_period_s")  # two names share one sentence
    assert period.says == setting("models", "health_check_timeout_s").says != ""
