"""The manifests: rendered by kustomize, valid by published schemas, closed, and true to `octavo serve` and configs/."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from octavo_serve.command.serve_command import Options, environment
from octavo_serve.config.config_file import read_plan

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted((ROOT / "kubernetes" / "overlays").iterdir())
VERSIONS = "1.32", "1.37"
CRD = os.environ.get("OCTAVO_KUBERAY_CRD")
TOOLS = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
BUILD = next((command for tool, command in TOOLS.items() if shutil.which(tool)), None)
pytestmark = pytest.mark.skipif(BUILD is None, reason="neither kubectl nor kustomize is installed")

Manifest = dict[str, Any]


@cache
def rendered(folder: Path) -> list[Manifest]:
    assert BUILD is not None
    done = subprocess.run([*BUILD, str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pods(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The pods' specs, of the head and of workers."""
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]


@pytest.fixture(params=OVERLAYS, ids=lambda folder: folder.name)
def overlay(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def manifests(overlay: Path) -> list[Manifest]:
    return rendered(overlay)


# ---- valid ----------------------------------------------------------------------------------------------------------


@cache
def ray_service(version: str) -> Draft202012Validator:
    kubernetes = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    schema = yaml.safe_load((ROOT / "tests" / "rayservice_schema.yaml").read_text()) | {"$id": "/api/rayservice.json"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    resources = [("/api/_definitions.json", kubernetes), (schema["$id"], schema)]
    registry: Registry[Any] = Registry().with_resources(
        [(uri, Resource.from_contents(contents)) for uri, contents in resources]
    )
    return Draft202012Validator(schema, registry=registry)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] == "RayService":
            ray_service(version).validate(manifest)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    assert {manifest["kind"] for manifest in manifests} == {
        "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "RayService", "ServiceAccount",
    }  # fmt: skip


def set_in(manifest: Manifest, path: str, value: object) -> None:
    *parents, last = path.split("/")
    place: Any = manifest
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/rayClusterConfig/autoscaling", True),
        ("spec/rayClusterConfig/authOptions/mode", "none"),
        ("spec/rayClusterConfig/workerGroupSpecs/0/minReplicas", "1"),
        ("spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/livenesProbe", {}),
        ("spec/rayClusterConfig/headGroupSpec/template/spec/securityContext/runAsUser", "me"),
    ],
)
def test_a_mistake_is_found(path: str, value: object) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(one(rendered(OVERLAYS[0]), "RayService")))
    set_in(manifest, path, value)
    assert not ray_service(VERSIONS[0]).is_valid(manifest)


@pytest.mark.skipif(CRD is None, reason="OCTAVO_KUBERAY_CRD names no definition")
def test_the_service_is_valid_by_kuberays_definition(manifests: list[Manifest]) -> None:
    definition = yaml.safe_load(Path(CRD or "").read_text())
    (version,) = (found for found in definition["spec"]["versions"] if found["name"] == "v1")
    Draft202012Validator(closed(version["schema"]["openAPIV3Schema"])).validate(one(manifests, "RayService"))


def closed(schema: Any) -> Any:
    """A structural schema as a cluster applies it with --validate=strict: unknown fields are errors."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("properties") and schema.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("pattern", None)  # a number has none
    return found


# ---- what is served -------------------------------------------------------------------------------------------------


def served(folder: Path) -> Manifest:
    document: Manifest = yaml.safe_load((folder / "serve.yaml").read_text())
    return document


def test_the_service_has_the_overlays_config(overlay: Path, manifests: list[Manifest]) -> None:
    assert one(manifests, "RayService")["spec"]["serveConfigV2"] == (overlay / "serve.yaml").read_text()


def test_the_config_is_one_of_octavo_serve_with_keys(overlay: Path) -> None:
    plan = read_plan(overlay / "serve.yaml")
    assert (plan.host, plan.port) == ("0.0.0.0", 8000)
    (settings,) = plan.settings
    assert all(Path(key.file or "").parent == Path("/etc/octavo/keys") for key in settings.api_keys[:2])
    assert settings.api_keys


def models(document: Manifest) -> Iterator[Manifest]:
    for application in document["applications"]:
        yield from application["args"]["models"]


@pytest.mark.parametrize(
    ("folder", "differs"),
    [("kubernetes/overlays/quickstart-cpu", set()), ("containers", set()),
     ("kubernetes/overlays/autoscaling", {"replicas", "num_cpus", "graceful_shutdown_timeout_s"})],
)  # fmt: skip
def test_the_model_is_the_quickstarts(folder: str, differs: set[str]) -> None:
    (model,) = models(served(ROOT / folder))
    (quickstart,) = models(yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text()))
    assert {key for key in model | quickstart if model.get(key) != quickstart.get(key)} == differs


def test_shards_fit_workers(overlay: Path, manifests: list[Manifest]) -> None:
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    (settings,) = read_plan(overlay / "serve.yaml").settings
    for model in settings.models:
        ranks = model.tensor_parallel
        assert model.num_gpus * ranks == int(limits.get("nvidia.com/gpu", 0))
        assert model.num_cpus * ranks + settings.gateway.num_cpus * settings.gateway.replicas <= float(limits["cpu"])
        if cluster.get("enableInTreeAutoscaling"):
            assert (model.fewest_shards, model.most_shards) == (group["minReplicas"], group["maxReplicas"])


def test_rays_processes_are_told_what_octavo_serve_tells_them(tmp_path: Path) -> None:
    """But for what one machine needs: loopback, ports beside other servers, a folder of its own, Ray's token."""
    plan = read_plan(ROOT / "configs" / "quickstart.yaml")
    ours = environment(Options(ROOT / "configs" / "quickstart.yaml"), plan, tmp_path)
    theirs = one(rendered(OVERLAYS[0]), "ConfigMap")["data"]
    differs = {name for name in theirs if theirs[name] != ours.get(name)}
    assert differs == {"OCTAVO_HOST", "RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_SERVE_HAPROXY_MAXCONN"}


def test_the_cluster_runs_the_tested_ray(manifests: list[Manifest]) -> None:
    assert one(manifests, "RayService")["spec"]["rayClusterConfig"]["rayVersion"] == metadata.version("ray")


# ---- closed ---------------------------------------------------------------------------------------------------------


def containers(spec: Manifest) -> Iterator[Manifest]:
    yield from spec["containers"]
    yield from spec.get("initContainers", ())


def test_no_container_has_more_rights_than_it_needs(manifests: list[Manifest]) -> None:
    """What Kubernetes' "restricted" standard asks for, and a root file system that cannot be written."""
    for spec in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_ray_asks_for_a_token_and_the_api_for_a_key(overlay: Path, manifests: list[Manifest]) -> None:
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    for spec in pods(manifests):
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "keys")
        assert volume["secret"]["secretName"] == "octavo-keys"


def test_the_policy_covers_every_pod_and_opens_the_front_alone(manifests: list[Manifest]) -> None:
    policy = one(manifests, "NetworkPolicy")["spec"]
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert policy["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    everywhere = [rule["from"] for rule in policy["ingress"] if "ports" not in rule]
    assert everywhere == [[{"podSelector": policy["podSelector"]}]]
    clients = [rule for rule in policy["ingress"] if "octavo.dev/client" in str(rule["from"])]
    assert [rule["ports"] for rule in clients] == [[{"port": 8000}]]


# ---- probes and the end ---------------------------------------------------------------------------------------------


def test_a_loading_shard_is_not_ready_and_alive(manifests: list[Manifest]) -> None:
    worker = pods(manifests)[1]["containers"][0]
    assert worker["readinessProbe"]["httpGet"]["path"] == "/health"
    assert worker["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}  # Ray's, of this node alone
    assert "startupProbe" not in worker


def test_a_pods_end_leaves_time_for_its_streams(overlay: Path, manifests: list[Manifest]) -> None:
    worker = pods(manifests)[1]
    drain = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    (settings,) = read_plan(overlay / "serve.yaml").settings
    longest = max(model.graceful_shutdown_timeout_s for model in settings.models)
    assert longest < float(drain.rpartition(" ")[2]) < worker["terminationGracePeriodSeconds"]


def test_a_users_image_takes_every_place_of_ours(tmp_path: Path) -> None:
    """`images:` of a kustomization reaches into a RayService."""
    folder = tmp_path / "mine"
    folder.mkdir()
    base = os.path.relpath(OVERLAYS[0], folder)
    images = [{"name": "octavo", "newName": "registry.example/team/octavo", "newTag": "7"}]
    folder.joinpath("kustomization.yaml").write_text(yaml.safe_dump({"resources": [base], "images": images}))
    used = {container["image"] for spec in pods(rendered(folder)) for container in containers(spec)}
    assert used == {"registry.example/team/octavo:7"}
