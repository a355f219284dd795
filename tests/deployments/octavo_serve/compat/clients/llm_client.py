"""LLM, the command line and library, with the server named in extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cases import CAPITAL, MODEL, PERSON, RESULT, URL, WEATHER, check, run

FOLDER = Path(os.environ["COMPAT_FOLDER"], "user")
FOLDER.mkdir(exist_ok=True)
os.environ |= {"LLM_USER_PATH": str(FOLDER), "OPENAI_API_KEY": "none"}
FOLDER.joinpath("extra-openai-models.yaml").write_text(
    f"- {{model_id: octavo, model_name: {MODEL}, api_base: {URL}/v1, supports_tools: true, supports_schema: true}}\n"
)

import llm  # noqa: E402  it looks for the folder when it is imported

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "born": {"type": "integer"}},
    "required": ["name", "born"],
}


def command_line() -> None:
    command = [str(Path(sys.executable).with_name("llm")), "-m", "octavo", CAPITAL]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    check("Paris" in said.stdout, said.stdout, said.stderr)


def chat() -> None:
    check("Paris" in (said := llm.get_model("octavo").prompt(CAPITAL, stream=False).text()), said)


def stream() -> None:
    check("Paris" in "".join(llm.get_model("octavo").prompt(CAPITAL)))


def schema() -> None:
    said = llm.get_model("octavo").prompt(PERSON, schema=SCHEMA).text()
    check(json.loads(said)["born"] == 1815, said)


def tools() -> None:
    def weather(city: str) -> str:
        """The weather."""
        return RESULT

    said = llm.get_model("octavo").chain(WEATHER, tools=[weather]).text()
    check("14 degrees" in said, said)


run("llm", "llm", command_line, chat, stream, schema, tools)
