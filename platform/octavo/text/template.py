"""Compiles chat templates, and runs the usual ones directly on the event loop, within bounds of time and size.

A template is a program from a model file, so it is untrusted. `Template.render` runs any template for as long as it
takes; only `template_process` calls it. `Template.render_quickly` is for an event loop. It runs only templates that
consist of usual parts (`template_usual.is_usual`), and raises `NotQuick` if one needs more than QUICK_SECONDS or
QUICK_TEXT. The output of a usual part is at most a few times its input, so it is enough to check time and sizes

* in each round of a loop, at the start of a macro (`_watched`), and in the filters whose output can be large;
* wherever texts or lists are concatenated: `+`, `~`, a macro, a block (`_Quick`).

Jinja's optimizer is off, because it would evaluate constants such as 2**10**9 while it compiles.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import BadRequest
from octavo.text.template_usual import is_usual, looks_into_parts, watch
from octavo.text.template_values import NoContent

MAX_SOURCE = 2**18
"""Most characters of a template; the longest in use have 30,000."""
MAX_TEXT = 2**23
"""Most characters that a template may write: twice an English text of a million tokens."""
QUICK_SECONDS = 0.01
QUICK_TEXT = 2**15
"""Most characters of a template's variables for `render_quickly`; a text inside it may grow to 16 times that."""
QUICK_RANGE = 2**12
"""Most numbers in a `range` of `render_quickly`: one instruction that reads 100,000 of them takes 20 to 80 ms."""
_PIECE = 16 * QUICK_TEXT
_DEADLINE = "_octavo_deadline"


class NotQuick(Exception):
    """The template must be run by `template_process` for these variables."""


class Template:
    """A compiled chat template.

    Attributes:
        source: its Jinja source.
        looks_into_parts: whether it loops over the parts of a message's content, or picks one.

    Raises:
        BadRequest: it is not a template.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise BadRequest(f"the model's chat template has {len(source)} characters; at most {MAX_SOURCE} are read")
        self.source = source
        with _sentences():
            tree = _environment(_Apart).parse(source)
            self.looks_into_parts = looks_into_parts(tree)
            self._quick = _compile(_Quick, watch(tree)) if is_usual(tree) else None
        self._apart: jinja2.Template | None = None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Run it to its end.

        Raises:
            BadRequest: it refuses the variables, or cannot render them.
        """
        with _sentences():
            if self._apart is None:
                self._apart = _compile(_Apart, _environment(_Apart).parse(self.source))
            return self._apart.render(**variables)

    def render_quickly(self, variables: Mapping[str, Any]) -> str:
        """Run it in this thread; the variables must fit QUICK_TEXT.

        Raises:
            NotQuick: it takes too long, or might.
            BadRequest: it refuses the variables, or cannot render them.
        """
        if self._quick is None:
            raise NotQuick
        with _sentences():
            return self._quick.render({**variables, _DEADLINE: time.perf_counter() + QUICK_SECONDS})


MAX_KNOWN = 32
_known: dict[str, Template | BadRequest] = {}


def compiled(source: str) -> Template:
    """The template of a source, compiled once: 5 to 30 ms.

    Raises:
        BadRequest: it is not a template.
    """
    found = _known.get(source)
    if found is None:
        try:
            found = Template(source)
        except BadRequest as error:
            found = error
        while len(_known) >= MAX_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[source] = found
    if isinstance(found, BadRequest):
        raise BadRequest(found.message, found.param)
    return found


def is_compiled(source: str) -> bool:
    """Whether `compiled` has the answer at once."""
    return source in _known


class _sentences:  # noqa: N801 - used like a function; a generator would cost 1 us more
    """Turns what Jinja and a template raise into one sentence."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, NotQuick | BadRequest | MemoryError) or not isinstance(error, Exception):
            return
        if isinstance(error, jinja2.TemplateError):
            raise BadRequest(f"the model's chat template refuses these messages: {error.message}", "messages") from None
        # the template is a program: it may meet a field of a shape it did not expect
        reason = str(error) or type(error).__name__
        raise BadRequest(f"the model's chat template cannot render these messages: {reason}", "messages") from None


def fits(value: Any, limit: int) -> bool:
    """Whether a value's texts and keys have at most `limit` characters and its lists and maps `limit` / 4 entries.

    A value that is in another twice counts twice, as it does when it is written. 0.1 us per entry.
    """
    waiting, left = [value], limit
    while waiting and left >= 0:
        item = waiting.pop()
        if isinstance(item, str):
            left -= len(item)
        elif isinstance(item, dict):
            left -= 4 * len(item)
            waiting += item.values()
        elif isinstance(item, list | tuple):
            left -= 4 * len(item)
            waiting += item
    return left >= 0


# ── the two environments ──


class _Apart(ImmutableSandboxedEnvironment):
    """For any template, in a process with limits."""


class _Quick(ImmutableSandboxedEnvironment):
    """For usual templates; every step is checked against the bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            added = left + right
            return added if type(added) is str and len(added) <= _PIECE else _sized(added)
        if not (isinstance(left, int) and isinstance(right, int)) or operator == "**" or abs(left) > 2**64:
            raise NotQuick
        return left * right if operator == "*" else left % right


def _environment(kind: type[jinja2.Environment]) -> jinja2.Environment:
    environment = kind(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.concat = _joiner(MAX_TEXT if kind is _Apart else _PIECE)  # type: ignore[method-assign]
    if kind is _Quick:
        environment.globals["range"] = _quick_range
        environment.filters |= {"tojson": _quick_json, "join": _quick_join, "replace": _quick_replace,
                                "_watched": _watched, "_look": _look, "_sized": _sized}  # fmt: skip
    return environment


def _compile(kind: type[jinja2.Environment], tree: nodes.Template) -> jinja2.Template:
    environment = _environment(kind)
    tree.set_environment(environment)
    code = environment._compile(environment._generate(tree, None, None), "<chat template>")
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _joiner(limit: int) -> Callable[[Iterable[str]], str]:
    """Like `"".join`, but raises once the text is too long."""

    def join(pieces: Iterable[str]) -> str:
        kept, left = [], limit
        for piece in pieces:
            kept.append(piece)
            left -= len(piece)
            if left < 0:
                raise _too_long(limit)
        return "".join(kept)

    return join


def _too_long(limit: int) -> Exception:
    if limit == _PIECE:
        return NotQuick()
    return BadRequest(f"the model's chat template writes more than {limit} characters for these messages", "messages")


# ── what the quick environment looks at ──


@pass_context
def _look(context: Context, value: Any) -> Any:
    if time.perf_counter() > context.parent[_DEADLINE]:
        raise NotQuick
    return value


@pass_context
def _watched(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    deadline = context.parent[_DEADLINE]
    for item in items:
        if time.perf_counter() > deadline:
            raise NotQuick
        yield item


def _sized(value: Any) -> Any:
    """Check the size of a value made of others: joined with itself again and again, it would grow exponentially."""
    if isinstance(value, str):
        if len(value) > _PIECE:
            raise NotQuick
    elif not fits(value, _PIECE):
        raise NotQuick
    return value


def _quick_range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > QUICK_RANGE:
        raise NotQuick
    return found


@pass_context
def _quick_json(context: Context, value: Any, *args: Any, **options: Any) -> str:
    indent = args[1] if len(args) > 1 else options.get("indent")
    if indent is not None and not (isinstance(indent, int) and indent <= 8):
        raise NotQuick
    return str(_sized(to_json(_look(context, value), *args, **options)))


@pass_context
def _quick_join(context: Context, value: Any, d: str = "", attribute: str | None = None) -> str:
    items = list(_look(context, value))
    if len(items) * len(str(d)) > _PIECE:
        raise NotQuick
    return str(jinja2.filters.sync_do_join(context.eval_ctx, items, d, attribute))


@pass_context
def _quick_replace(context: Context, s: str, old: str, new: str, count: int | None = None) -> str:
    s = str(_look(context, s))
    if len(s) + s.count(old) * len(new) > _PIECE:
        raise NotQuick
    return s.replace(old, new, -1 if count is None else count)


# ── what transformers gives templates besides Jinja's own ──


class _GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's text for training; here it renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - how jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name templates may use
    return datetime.now().strftime(format)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without jinja2's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys,
                      default=_no_content)  # fmt: skip


def _no_content(value: Any) -> str:
    if isinstance(value, NoContent):
        return ""
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
