"""`octavo serve --settings`."""

from __future__ import annotations

import pytest

from octavo_serve.command.flags import flags
from octavo_serve.command.settings_table import show, values


def test_every_flag_is_listed_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    said = capsys.readouterr().out
    assert [name for name, flag in flags().items() if f"--{flag.name}" not in said] == []
    assert "tokens per KV block." in said


@pytest.mark.parametrize(
    ("name", "shown"),
    [("dtype", "auto|float32|bfloat16|float16 (auto)"), ("enforce_eager", "(false)"), ("replicas", "int (1)"),
     ("max_model_len", "int"), ("cors_origins", "str..."), ("accuracy", "{...}")],
)  # fmt: skip
def test_what_may_follow_a_flag(name: str, shown: str) -> None:
    assert values(flags()[name]) == shown
