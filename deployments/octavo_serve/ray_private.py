"""Everything that Octavo uses of Ray 2.60's private parts, and why; no other file does (`tests/test_layout.py`).

A new version of Ray may change any of it without saying so: read this file beside its source first.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray import _raylet, serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray._common.utils import import_attr
from ray._private import worker
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.state import state as cluster_state
from ray.core.generated import common_pb2, gcs_service_pb2, gcs_service_pb2_grpc, node_manager_pb2
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
from ray.serve._private import api, replica
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    DeploymentTargetInfo,
    RequestMetadata,
    RunningReplicaInfo,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace
from ray.serve._private.router import RouterMetricsManager
from ray.util import get_node_ip_address, metrics

from octavo import __version__
from octavo_serve.ports import in_url

# ---- deploying ------------------------------------------------------------------------------------------------------


class _OwnVersion(DeploymentConfig):
    """A deployment's config that keeps its version."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "version":
            super().__setattr__(name, value)


def versioned(deployment: serve.Deployment, *arguments: object) -> serve.Deployment:
    """Give a deployment a version that only its own arguments change.

    Why: Serve (`build_serve_application`) writes one version into all deployments of an application, a hash of the
    application's whole `args`: adding a model would restart the shards of all others and the gateway.
    """
    config = deployment._deployment_config
    config.version = hashlib.sha256(repr((__version__, *arguments)).encode()).hexdigest()[:16]
    config.__class__ = _OwnVersion
    return deployment


def be_patient_with_proxies() -> None:
    """Let Serve's proxies start as slowly as they like.

    Why: Serve ends after 60 s, which a busy machine exceeds; `octavo serve --timeout` ends the wait.
    """
    api.HTTP_PROXY_TIMEOUT = 3600  # type: ignore[attr-defined]


def start_serve(options: Any) -> Any:
    """Connect to Serve on the cluster that this process is connected to, or start it there; returns its client.

    Why: `serve.start` does not say which port the Serve that it found listens on.

    Args:
        options: a `ServeDeploySchema`.
    """
    return api.serve_start(
        http_options=options.http_options.model_dump(),
        proxy_location=options.proxy_location,
        grpc_options=options.grpc_options.model_dump(),
    )


def built(app: Any) -> serve.Application:
    """An application (a `ServeApplicationSchema`) as `serve run CONFIG` builds it.

    Why: Serve's public ways with a config file replace all applications of earlier ones.
    """
    return api.call_user_app_builder_with_args_if_necessary(import_attr(app.import_path), app.args)


async def http_host() -> str:
    """The host that Serve's HTTP front listens on. Why: Serve tells nobody but its own proxies."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    options = await controller.get_http_config.remote()
    return str(options.host)


# ---- a deployment, for requests that come without handle calls ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replica:
    """A running replica, as Serve's controller lists it.

    Attributes:
        name: no other replica has it, at any time.
        capacity: most requests that it is to have at once.
        metadata: what its `record_replica_metadata` has returned.
        id: Serve's own.
    """

    name: str
    capacity: int
    metadata: Mapping[str, Any]
    id: Any


class Deployment:
    """The running replicas of a deployment, and Serve's count of the requests that wait for them and run there.

    Why: a handle call tells its caller neither; a request that reaches its replica by another way must still count for
    the autoscaler and in Serve's metrics. `LongPollClient` is how Serve's own routers, and Ray's LLM router, learn of
    replicas; `RouterMetricsManager` is what a handle counts with, and pushes to the controller at once where a request
    waits for the first replica. To be made and used in one event loop.

    Attributes:
        name: of the deployment.
        available: False once Serve has given it up.
    """

    def __init__(self, name: str, app: str) -> None:
        self.name = name
        self.available = True
        self._id = DeploymentID(name, app)
        self._listed: Callable[[list[Replica]], None] = lambda replicas: None
        self._replicas = 0
        loop = asyncio.get_running_loop()
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        actor = ray.get_runtime_context().get_actor_id() or ""
        tags = ("deployment", "application", "handle", "actor_id")
        self._books = RouterMetricsManager(
            self._id, uuid.uuid4().hex, actor, DeploymentHandleSource.REPLICA, controller,
            metrics.Counter("serve_num_router_requests", tag_keys=(*tags, "route")),
            metrics.Gauge("serve_deployment_queued_queries", tag_keys=tags),
            metrics.Gauge("serve_num_ongoing_requests_at_replicas", tag_keys=tags),
            loop,
        )  # fmt: skip
        listeners = {
            (LongPollNamespace.DEPLOYMENT_TARGETS, self._id): self._take_in_targets,
            (LongPollNamespace.DEPLOYMENT_CONFIG, self._id): self._take_in_config,
        }
        self._poll = LongPollClient(controller, listeners, loop, f"octavo:{actor}:{name}")  # type: ignore[arg-type]

    def watch(self, listed: Callable[[list[Replica]], None]) -> None:
        """Call `listed` with all running replicas soon, and then whenever anything of them or `available` changes."""
        self._listed = listed

    def asked(self) -> None:
        """Count a request.

        Raises:
            BackPressureError: as many wait as the deployment's `max_queued_requests` allows.
        """
        with self._books.wrap_request_assignment(_REQUEST):
            pass

    def queued(self, again: bool) -> AbstractContextManager[None]:
        """A request waits for room within this; `again`: it did so before, for another replica."""
        return self._books.wrap_queued_request(again, self._replicas)

    def started(self, replica: Replica) -> None:
        """A request was sent to a replica."""
        self._books.inc_num_running_requests_for_replica(replica.id)

    def ended(self, replica: Replica) -> None:
        """A request that was sent to a replica does not run there any more."""
        self._books.dec_num_running_requests_for_replica(replica.id)

    async def close(self) -> None:
        """Listen and report no more."""
        self._poll.stop()
        self._listed = lambda replicas: None
        await self._books.shutdown()  # type: ignore[no-untyped-call]

    def _take_in_targets(self, targets: DeploymentTargetInfo) -> None:
        self.available = targets.is_available
        self._replicas = len(targets.running_replicas)
        self._books._update_running_replicas(targets.running_replicas)
        self._listed([_replica(found) for found in targets.running_replicas])

    def _take_in_config(self, config: DeploymentConfig) -> None:
        self._books.update_deployment_config(config, self._replicas)


def _replica(info: RunningReplicaInfo) -> Replica:
    name, capacity = info.replica_id.unique_id, info.max_ongoing_requests
    return Replica(name, capacity, info.replica_metadata, info.replica_id)


_REQUEST = RequestMetadata(request_id="", internal_request_id="")  # its route alone is looked at


# ---- who may call ---------------------------------------------------------------------------------------------------


def keep_serve_at_home() -> None:
    """Have the replica in this process listen for handle calls on its node's address.

    To be called in the constructor of its class: the port is opened afterwards. Why: Serve listens on every address.
    """
    at_home = in_url(get_node_ip_address(), 0)  # type: ignore[no-untyped-call]

    def add_port(server: Any, everywhere: str) -> int:
        port: int = add_port_to_grpc_server(server, at_home)  # type: ignore[no-untyped-call]
        return port

    vars(replica)["add_port_to_grpc_server"] = add_port


def use_token() -> None:
    """Have this process show the user's token when it connects, if there is one. Why: `ray start` alone does."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def process_is_open() -> bool:
    """Whether the Ray process that this is takes calls of everybody. Why: nothing public says it."""
    raylet: Any = _raylet
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.DISABLED)


def asks_who_we_are(gcs_address: str) -> bool:
    """Whether a cluster refuses a caller without its token. Why: only a call without one can tell."""
    request = gcs_service_pb2.InternalKVExistsRequest(namespace=b"", key=b"octavo")  # type: ignore[attr-defined]
    with grpc.insecure_channel(gcs_address) as channel:
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            store.InternalKVExists(request, timeout=10)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


# ---- nodes and their processes --------------------------------------------------------------------------------------


def grows_by_itself() -> bool:
    """Whether the cluster brings nodes when they are asked for. Why: `ray.nodes` lists only those that are there."""
    return cluster_state.get_max_resources_from_cluster_config() is not None


def session_folder() -> str:
    """Ray's folder of this cluster on this node. Why: its place depends on how the cluster was started."""
    folder: str = vars(worker)["_global_node"].get_session_dir_path()
    return folder


class Raylet:
    """This node's raylet, asked for worker processes before anybody needs them.

    Why: Ray starts a process when an actor wants one, and that takes most of a small shard's start (`warm`).
    """

    def __init__(self) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        (node,) = (node for node in ray.nodes() if node["NodeID"] == node_id)  # type: ignore[no-untyped-call]
        self._channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        self._service = NodeManagerServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def prestart_worker(self, keep_seconds: int, timeout: float) -> None:
        """Start one process for any job, to live `keep_seconds` while it is idle."""
        python = common_pb2.Language.Value("PYTHON")  # type: ignore[attr-defined]
        request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
            language=python, job_id=b"\xff" * 4, keep_alive_duration_secs=keep_seconds, num_workers=1
        )
        request.runtime_env_info.serialized_runtime_env = "{}"
        self._service.PrestartWorkers(request, timeout=timeout)

    def close(self) -> None:
        self._channel.close()
