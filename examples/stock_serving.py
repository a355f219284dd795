"""A model behind Ray Serve as its documentation writes it: what `benchmark_serving.py` compares with.

FastAPI, a handle call that streams, one item per token, Serve's proxy. The engine is the same.

    .venv/bin/python examples/stock_serving.py CONFIG.yaml      # serves the config's first model, until it is ended
"""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray import init, serve

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.request import Request, SamplingParams, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer

app = FastAPI()


class Body(BaseModel):
    model: str
    prompt: str
    max_tokens: int = 16
    temperature: float = 1.0
    ignore_eos: bool = False
    stream: bool = True


class Model:
    def __init__(self, source: str, engine: dict[str, Any]) -> None:
        self.engine = AsyncEngine.load(source, EngineConfig(**engine))

    async def generate(self, request: Request) -> AsyncIterator[SequenceUpdate]:
        async for updates in self.engine.generate(request):
            for update in updates:
                yield update


@serve.ingress(app)
class Ingress:
    def __init__(self, model: Any, source: str) -> None:
        self.model = model.options(method_name="generate", stream=True)
        self.tokenizer = load_tokenizer(resolve_source(source))

    @app.post("/v1/completions")
    async def completions(self, body: Body) -> StreamingResponse:
        params = SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, ignore_eos=body.ignore_eos)
        prompt = self.tokenizer.encode(body.prompt)
        request = Request(request_id=uuid4().hex, prompt_token_ids=prompt, params=params)
        return StreamingResponse(self.events(request), media_type="text/event-stream")

    async def events(self, request: Request) -> AsyncIterator[str]:
        async for update in self.model.remote(request):
            text = self.tokenizer.decode(update.token_ids)
            choice = {"index": 0, "text": text, "finish_reason": update.finish_reason}
            yield f"data: {json.dumps({'id': request.request_id, 'choices': [choice]}, separators=(',', ':'))}\n\n"
        yield "data: [DONE]\n\n"


def main() -> None:
    document = yaml.safe_load(Path(sys.argv[1]).read_text())
    settings = document["applications"][0]["args"]["models"][0]
    options: dict[str, Any] = {"max_ongoing_requests": 10_000, "ray_actor_options": {"num_cpus": 0.1}}
    init(address="local", include_dashboard=False, namespace="serve", log_to_driver=False)
    serve.start(http_options=document["http_options"])
    model = serve.deployment(name="shard", **options)(Model).bind(settings["source"], settings["engine"])
    ingress = serve.deployment(name="gateway", **options)(Ingress).bind(model, settings["source"])
    serve.run(ingress, name="stock", blocking=True)


if __name__ == "__main__":
    main()
