"""Examines a chat template's syntax tree: whether it has only usual parts, and how it reads message contents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

MAX_NODES = 6000
"""Most nodes of a usual template. 30,000 characters have about 4,000, of which a few hundred run per message."""
MAX_OPERANDS = 16
MAX_RENAMES = 8
"""How many assignments in a row a content is followed through; each costs one pass over the template."""

_PARTS = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.If, nodes.For,
    nodes.Macro, nodes.Assign, nodes.AssignBlock, nodes.ExprStmt, nodes.CondExpr, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Mod, nodes.Concat,
    nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Test, nodes.Keyword, nodes.List, nodes.Tuple, nodes.Dict,
    nodes.Pair, nodes.Continue, nodes.Break, nodes.Filter, nodes.Call, nodes.CallBlock, nodes.ExtensionAttribute,
)  # fmt: skip
_FILTERS = frozenset({
    "trim", "tojson", "length", "count", "items", "default", "d", "upper", "lower", "string", "join", "first",
    "last", "list", "selectattr", "rejectattr", "select", "reject", "map", "replace", "int", "float", "safe",
    "e", "escape", "capitalize", "title", "dictsort", "reverse", "unique", "abs",
})  # fmt: skip
_METHODS = frozenset({
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower",
    "title", "capitalize", "items", "keys", "values", "get", "find", "count", "index",
})  # fmt: skip
_GROWING = (nodes.List, nodes.Tuple, nodes.Dict, nodes.Concat)
_PICKING = frozenset({"map", "selectattr", "rejectattr", "select", "reject", "groupby"})


def is_usual(tree: nodes.Template) -> bool:
    """Whether every part's output is at most a few times its input, apart from the parts that `watch` adds checks
    to."""
    found = list(_walk(tree))
    if len(found) > MAX_NODES or not all(isinstance(node, _PARTS) for node in found):
        return False
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    spaces = [node for node in found if isinstance(node, nodes.Name) and node.name == "namespace"]
    if len(spaces) > MAX_OPERANDS:
        return False
    repeated = {id(call) for outer in tree.find_all((nodes.For, nodes.Macro)) for call in outer.find_all(nodes.Call)}
    return all(
        _usual_call(node, macros, id(node) in repeated) if isinstance(node, nodes.Call) else _usual(node)
        for node in found
    )


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    waiting = [node]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += found.iter_child_nodes()


def _usual(node: nodes.Node) -> bool:
    if isinstance(node, nodes.For):
        return not node.recursive
    if isinstance(node, nodes.Concat):
        return len(node.nodes) <= MAX_OPERANDS
    if isinstance(node, nodes.CallBlock):
        return isinstance(node.call.node, nodes.ExtensionAttribute)
    if isinstance(node, nodes.Filter):
        # `map` may call any filter by its name, and picks attributes otherwise
        by_name = node.name == "map" and (bool(node.args) or any(k.key != "attribute" for k in node.kwargs))
        return node.name in _FILTERS and not by_name and node.dyn_args is None and node.dyn_kwargs is None
    return True


def _usual_call(call: nodes.Call, macros: set[str], repeated: bool) -> bool:
    if call.dyn_args is not None or call.dyn_kwargs is not None:
        return False
    target = call.node
    if isinstance(target, nodes.Getattr):
        return target.attr in _METHODS
    if isinstance(target, nodes.ExtensionAttribute):
        return True
    if not isinstance(target, nodes.Name):
        return False
    if target.name == "namespace":
        return not repeated  # n namespaces that each hold the previous one twice are written as 2**n characters
    if target.name == "strftime_now":
        return all(isinstance(arg, nodes.Const) and not any(map(str.isdigit, str(arg.value))) for arg in call.args)
    return target.name in macros | {"raise_exception", "range", "caller"}


def watch(tree: nodes.Template) -> nodes.Template:
    """Insert the checks of time and size (filters of `template`'s quick environment) into the tree, in place."""
    for node in list(_walk(tree)):
        _size_operands(node)
        if isinstance(node, nodes.For):
            node.iter = _filter("_watched", node.iter)
        elif isinstance(node, nodes.Macro):
            node.body.insert(0, nodes.ExprStmt(_filter("_look", nodes.Const(None))))
    return tree


def _size_operands(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_sized(item) for item in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _sized(value))


def _sized(value: object) -> object:
    """Check the size of a list, map or text that is built from other values: it may be built from itself repeatedly."""
    if not isinstance(value, _GROWING) or getattr(value, "ctx", "load") != "load" or _constant(value):
        return value
    return _filter("_sized", value)


def _constant(node: nodes.Node) -> bool:
    return all(isinstance(child, nodes.Const | nodes.Pair | nodes.List | nodes.Tuple) for child in _walk(node) if
               child is not node) and not isinstance(node, nodes.Concat)  # fmt: skip


def _filter(name: str, value: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)


# ── how contents are read ──


def looks_into_parts(tree: nodes.Template) -> bool:
    """Whether a template loops over a message's content, or picks parts of it by number or filter.

    A content is the attribute or item "content" of any value, a variable assigned from one, or a macro parameter that
    receives one.
    """
    contents = _content_names(tree)
    if any(_is_content(loop.iter, contents) for loop in tree.find_all(nodes.For)):
        return True
    if any(f.name in _PICKING and f.node and _is_content(f.node, contents) for f in tree.find_all(nodes.Filter)):
        return True
    return any(_picks_part(node, contents) for kind in (nodes.Getattr, nodes.Getitem) for node in tree.find_all(kind))


def _picks_part(node: Any, contents: set[str]) -> bool:
    """`content[0].text`"""
    name = node.attr if isinstance(node, nodes.Getattr) else _const(node.arg)
    part = node.node
    by_number = isinstance(part, nodes.Getitem) and isinstance(_const(part.arg), int)
    return name in ("text", "type") and by_number and _is_content(part.node, contents)


def _const(node: nodes.Node) -> object:
    return node.value if isinstance(node, nodes.Const) else None


def _content_names(tree: nodes.Template) -> set[str]:
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    names: set[str] = set()
    for _ in range(MAX_RENAMES):
        before = len(names)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
                names.add(assign.target.name)
        for call in tree.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            for parameter, argument in zip(macro.args if macro else (), call.args, strict=False):
                if _is_content(argument, names):
                    names.add(parameter.name)
        if len(names) == before:
            break
    return names


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return _const(node.arg) == "content" or (isinstance(node.arg, nodes.Slice) and _is_content(node.node, names))
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, names) or (node.expr2 is not None and _is_content(node.expr2, names))
    if isinstance(node, nodes.Filter):
        return (
            node.name in _PICKING | {"list", "default", "d"} and node.node is not None and _is_content(node.node, names)
        )
    return isinstance(node, nodes.Or) and _is_content(node.left, names)
