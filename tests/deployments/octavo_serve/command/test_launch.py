"""What the child process of `octavo serve` reports, and when."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from octavo_serve.command import launch
from octavo_serve.command.launch import Reporter, for_drivers


def app(status: str, message: str = "", **deployments: tuple[str, str]) -> Any:
    found = {name: SimpleNamespace(status=state, message=said) for name, (state, said) in deployments.items()}
    return SimpleNamespace(status=status, message=message, deployments=found)


def watched(monkeypatch: pytest.MonkeyPatch, *looks: Any) -> list[dict[str, Any]]:
    """Reports while Serve answers like this, one look after the other; an exception is raised."""
    from ray import serve

    answers = iter(looks)

    def status() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(applications=answer)

    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(serve, "status", status)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.0)
    reports: list[dict[str, Any]] = []
    launch._watch(lambda **report: reports.append(report), ["octavo", "other"])  # type: ignore[arg-type]
    assert next(answers, None) is None  # it looked as often as there was something to see
    return reports


UP = app("RUNNING", gateway=("HEALTHY", ""))


def test_it_runs_once_every_application_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = watched(
        monkeypatch,
        RuntimeError("Serve is not up"),
        {},
        {"octavo": app("DEPLOYING")},
        {"octavo": app("DEPLOYING", gateway=("UPDATING", ""))},
        {"octavo": UP},  # the other one is not there yet
        {"octavo": app("DEPLOY_FAILED", gateway=("HEALTHY", "")), "other": UP},  # the gateway says what is wrong
    )
    phases = ["Building", "Building", "Starting the gateway", "Starting the gateway"]
    assert [report.get("phase") for report in reports] == [*phases, None]
    assert reports[-1] == {"running": "10.0.0.1:6379"}


def test_what_failed_is_said_once_without_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "Traceback:\n  File 'x'\noctavo.errors.ConfigError: no such setting\n"
    failed = app("DEPLOY_FAILED", gateway=("DEPLOY_FAILED", message), shard=("DEPLOY_FAILED", message))
    (report,) = watched(monkeypatch, {"octavo": failed})
    assert report == {"failed": "octavo.errors.ConfigError: no such setting"}
    (report,) = watched(monkeypatch, {"octavo": app("DEPLOY_FAILED", "no import path")})
    assert report == {"failed": "octavo: no import path"}


def test_a_report_is_written_when_it_differs_from_the_last() -> None:
    reader, writer = os.pipe()
    report = Reporter(writer)
    for phase in ("a", "a", "b", "a"):
        report(phase=phase)
    report(running="x")
    report._pipe.close()
    with os.fdopen(reader) as pipe:
        assert [json.loads(line) for line in pipe] == [{"phase": "a"}, {"phase": "b"}, {"phase": "a"}, {"running": "x"}]


def test_drivers_of_this_machine_are_given_an_address_that_ray_leaves_alone() -> None:
    assert for_drivers("10.0.0.1:6379") == "10.0.0.1:6379"
    host, _, port = for_drivers("127.0.0.1:6379").rpartition(":")
    assert (host in ("0.0.0.0", "[::ffff:127.0.0.1]"), port) == (True, "6379")
