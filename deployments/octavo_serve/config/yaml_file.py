"""Reads YAML config files; anything that two YAML readers may understand differently is an error in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from octavo.errors import ConfigError

LARGEST_FILE = 131_072
"""Most bytes of a file. The largest config here has 2,500; PyYAML reads 100 to 200 bytes per millisecond."""
MOST_NODES = 100_000
"""Most values of a document with its aliases expanded: nine lines of aliases can expand to 10^9 values."""


def read_yaml(path: Path) -> Any:
    """The one document of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, has a key twice, or exceeds the bounds above.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"cannot be read: a config has at most {LARGEST_FILE} bytes")
    return parse_yaml(content)


def parse_yaml(content: bytes) -> Any:
    """As `read_yaml`, from bytes in UTF-8."""
    try:
        loader = yaml.SafeLoader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"cannot be read: {_where(error.problem_mark)}{error.problem}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot be read: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ConfigError("cannot be read: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # such as a date in a 13th month
        raise ConfigError(f"cannot be read: {' '.join(str(error).split())}") from None


def _where(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "


def _check(node: Node, sizes: dict[int, int]) -> int:
    """The number of values in a node with its aliases expanded.

    Args:
        sizes: id of a visited node -> its size; 0 while the node's content is being counted.
    """
    if (known := sizes.get(id(node))) is not None:
        if not known:
            raise ConfigError(f"cannot be read: {_where(node.start_mark)}a value contains itself")
        return known
    sizes[id(node)] = 0
    if isinstance(node, MappingNode):
        _check_keys(node)
    size = 1 + sum(_check(child, sizes) for child in _children(node))
    if size > MOST_NODES:
        raise ConfigError(f"cannot be read: with its aliases it has more than {MOST_NODES} values")
    sizes[id(node)] = size
    return size


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _check_keys(node: MappingNode) -> None:
    seen = set[tuple[str, str]]()
    for key, _ in node.value:
        if isinstance(key, ScalarNode):
            if (key.tag, key.value) in seen:
                raise ConfigError(f"cannot be read: {_where(key.start_mark)}the key {key.value!r} is there twice")
            seen.add((key.tag, key.value))
