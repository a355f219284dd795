"""Templates in a process of their own, which is stopped, replaced and never trusted."""

from __future__ import annotations

import os
import signal

import pytest

from octavo.errors import BadRequest
from octavo.text import template_process
from octavo.text.template import compiled
from octavo.text.template_process import render_apart

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_templates_refusal_is_passed_on_and_the_process_goes_on():
    with pytest.raises(BadRequest, match="only two roles"):
        render_apart("{{ raise_exception('only two roles') }}", {})
    process = template_process._idle[-1]
    assert render_apart("{{ a }}", {"a": "next"}) == "next"
    assert template_process._idle[-1] is process


def test_a_template_without_end_is_stopped():
    with pytest.raises(BadRequest, match=r"was stopped: it needs more than 2 s of CPU time or 512 MiB"):
        render_apart(LOOPS, {})
    assert render_apart("{{ a }}", {"a": "next"}) == "next"


def test_a_process_that_is_gone_is_replaced():
    assert render_apart("{{ a * 2 }}", {"a": 2}) == "4"
    for process in template_process._idle:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
    assert render_apart("{{ a * 2 }}", {"a": 2}) == "4"


@pytest.mark.parametrize("text", ["", "Zürich 🙂", "\0", "\ud800"])
def test_a_text_is_the_same_from_its_process(text):
    assert render_apart("{{ a }}", {"a": text}) == compiled("{{ a }}").render_quickly({"a": text}) == text
