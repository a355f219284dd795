"""All uses of Ray 2.60's private parts, with the reason for each. No other file uses any (`tests/test_layout.py`).

A new version of Ray may change any of these without notice: before an upgrade, compare this file with Ray's source.
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
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
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
    """A deployment's config whose version cannot be overwritten."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "version":
            super().__setattr__(name, value)


def versioned(deployment: serve.Deployment, *arguments: object) -> serve.Deployment:
    """Give a deployment a version that depends only on its own arguments.

    Why: Serve (`build_serve_application`) gives all deployments of an application one version, a hash of the
        application's whole `args`, so adding a model would restart the gateway and the shards of all other models.
    """
    config = deployment._deployment_config
    config.version = hashlib.sha256(repr((__version__, *arguments)).encode()).hexdigest()[:16]
    config.__class__ = _OwnVersion
    return deployment


def be_patient_with_proxies() -> None:
    """Do not give up on Serve's proxies however slowly they start.

    Why: Serve gives up after 60 s, which is too short on a busy machine; `octavo serve --timeout` bounds the wait
        instead.
    """
    api.HTTP_PROXY_TIMEOUT = 3600  # type: ignore[attr-defined]


def start_serve(options: Any) -> Any:
    """Connect to Serve on the cluster that this process is connected to, or start it there; returns its client.

    Why: `serve.start` does not return the port on which an existing Serve listens.

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

    Why: Serve's public functions for config files replace all applications of earlier config files.
    """
    return api.call_user_app_builder_with_args_if_necessary(import_attr(app.import_path), app.args)


async def http_host() -> str:
    """The host that Serve's HTTP front listens on. Why: Serve gives it only to its own proxies."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    options = await controller.get_http_config.remote()
    return str(options.host)


# ---- a deployment, for requests that come without handle calls ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replica:
    """A running replica, as Serve's controller lists it.

    Attributes:
        name: unique among all replicas of all times.
        capacity: most requests that it may have at once.
        metadata: the value returned by its `record_replica_metadata`.
        id: Serve's own.
    """

    name: str
    capacity: int
    metadata: Mapping[str, Any]
    id: Any


class Deployment:
    """A deployment's running replicas, and Serve's counts of requests that wait for them and run on them.

    Why: a handle exposes neither, and requests that reach a replica without a handle must still be counted for the
        autoscaler and in Serve's metrics. Serve's own routers and Ray's LLM router learn of replicas through
        `LongPollClient`. Handles count with `RouterMetricsManager`, which reports to the controller at once if a
        request waits for the first replica. Create and use this object in one event loop.

    Attributes:
        name: the deployment's name.
        available: False once Serve has given the deployment up.
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
        """Call `listed` with all running replicas, soon and then whenever a replica or `available` changes."""
        self._listed = listed

    def asked(self) -> None:
        """Count a request.

        Raises:
            BackPressureError: as many wait as the deployment's `max_queued_requests` allows.
        """
        with self._books.wrap_request_assignment(_REQUEST):
            pass

    def queued(self, again: bool) -> AbstractContextManager[None]:
        """Context in which a request waits for a replica; `again`: it has waited before, for another one."""
        return self._books.wrap_queued_request(again, self._replicas)

    def started(self, replica: Replica) -> None:
        """A request was sent to a replica."""
        self._books.inc_num_running_requests_for_replica(replica.id)

    def ended(self, replica: Replica) -> None:
        """A request that was sent to a replica no longer runs there."""
        self._books.dec_num_running_requests_for_replica(replica.id)

    async def close(self) -> None:
        """Stop listening and reporting."""
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


_REQUEST = RequestMetadata(request_id="", internal_request_id="")  # only its route is read


def keep(key: str, value: bytes) -> None:
    """Keep a value for all processes of the cluster, instead of the one before it; blocks for about a millisecond.

    Why: what Serve's controller alone knows, such as why it scales, is in nothing that it tells replicas; an actor for
        it would be a process of 100 MB.
    """
    _internal_kv_put(key, value, namespace="octavo")


def kept(key: str) -> bytes | None:
    """The value kept last; None if there is none. Blocks as `keep` does."""
    value: bytes | None = _internal_kv_get(key, namespace="octavo")
    return value


# ---- who may call ---------------------------------------------------------------------------------------------------


def keep_serve_at_home() -> None:
    """Make the replica in this process listen for handle calls only on its node's address.

    Call it in the constructor of the replica's class, because the port is opened afterwards. Why: Serve listens on
    every address.
    """
    at_home = in_url(get_node_ip_address(), 0)  # type: ignore[no-untyped-call]

    def add_port(server: Any, everywhere: str) -> int:
        port: int = add_port_to_grpc_server(server, at_home)  # type: ignore[no-untyped-call]
        return port

    vars(replica)["add_port_to_grpc_server"] = add_port


def use_token() -> None:
    """Make this process send the user's token when it connects, if there is one. Why: only `ray start` does so."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def process_is_open() -> bool:
    """Whether this Ray process accepts calls from anybody. Why: no public function tells."""
    raylet: Any = _raylet
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.DISABLED)


def asks_who_we_are(gcs_address: str) -> bool:
    """Whether a cluster refuses calls without its token. Why: only a call without a token can find out."""
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
    """Whether the cluster adds nodes on demand. Why: `ray.nodes` lists only those that exist."""
    return cluster_state.get_max_resources_from_cluster_config() is not None


def session_folder() -> str:
    """Ray's session folder of this cluster on this node. Why: its path depends on how the cluster was started."""
    folder: str = vars(worker)["_global_node"].get_session_dir_path()
    return folder


class Raylet:
    """This node's raylet, which can start worker processes before they are needed.

    Why: Ray starts a process only when an actor needs one, which takes most of a small shard's start time (`warm`).
    """

    def __init__(self) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        (node,) = (node for node in ray.nodes() if node["NodeID"] == node_id)  # type: ignore[no-untyped-call]
        self._channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        self._service = NodeManagerServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def prestart_worker(self, keep_seconds: int, timeout: float) -> None:
        """Start one process for any job; Ray ends it after `keep_seconds` of idling."""
        python = common_pb2.Language.Value("PYTHON")  # type: ignore[attr-defined]
        request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
            language=python, job_id=b"\xff" * 4, keep_alive_duration_secs=keep_seconds, num_workers=1
        )
        request.runtime_env_info.serialized_runtime_env = "{}"
        self._service.PrestartWorkers(request, timeout=timeout)

    def close(self) -> None:
        self._channel.close()
