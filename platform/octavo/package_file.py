"""Files inside installed Python packages, found without importing those; also files split over several packages.

A file too large for one package is split as split(1) does: package MODULE holds `SHA256SUMS` where the file would lie,
and packages MODULE_part1, MODULE_part2, ... hold `FILE.part00`, `FILE.part01`, ... in the same place. The parts are
joined once, checked against the sum, and the file is kept in Octavo's cache folder ($OCTAVO_CACHE).

Where packages were split in another way, a name says how, as a shell would write it:
MODEL_part{1..6}/data/part{01..06}.bin are six packages with one part each. Ranges count together. No package holds the
sum then, so it comes with the name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import itertools
import logging
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from octavo.errors import ModelError
from octavo_kernels.native.cache import lock, own_file, with_cache

logger = logging.getLogger(__name__)

_CHUNK = 2**22
_RANGE = re.compile(r"\{(\d{1,3})\.\.(\d{1,3})\}")

Split = tuple[str, str, list[Path]]
"""A file that is to be put together: its path inside the package, its SHA-256 sum in hex, its parts in order."""


def package_file(name: str, digest: str | None = None) -> Path:
    """The file or directory at MODULE/FILE.

    Args:
        digest: the sum that it must have, in hex; only a name with ranges needs one here.

    Raises:
        ModelError: it is not there; the message says which package to install.
    """
    found = find_package_file(name, digest)
    return found if isinstance(found, Path) else _assembled(*found)


def find_package_file(name: str, digest: str | None = None) -> Path | Split:
    """The same without joining a split file.

    Raises:
        ModelError: as above.
    """
    module, _, file = name.partition("/")
    if not file:
        raise ModelError(f"'package:{name}' names no file: write package:MODULE/FILE")
    if _RANGE.search(name):
        return _numbered(name, digest)
    folders = _folders(module)
    if not folders:
        raise ModelError(f"'package:{name}': package {module!r} is not installed; {_pip([module.split('.')[0]])}")
    for folder in folders:
        if (path := folder / file).exists():
            return path
    if (found := _digest(folders, file)) is None:
        raise ModelError(f"'package:{name}': package {module!r} holds no file {file!r}")
    return file, found, _parts(module, file)


def _numbered(name: str, digest: str | None) -> Split:
    """The parts that a name with ranges stands for: one in each of several packages."""
    if digest is None:
        raise ModelError(
            f"'package:{name}' is a file in parts: add the SHA-256 sum of the whole, #sha256=64_HEX_DIGITS"
        )
    names = [part.partition("/") for part in _counted(name)]
    if missing := [module.split(".")[0] for module, _, _ in names if not _folders(module)]:
        raise ModelError(f"'package:{name}': parts are not installed; {_pip(missing)}")
    parts = [find_package_file(f"{module}/{file}") for module, _, file in names]
    return "model.gguf", digest.lower(), [part for part in parts if isinstance(part, Path)]


def _counted(name: str) -> list[str]:
    """a{1..3}/b{01..03} as a1/b01, a2/b02, a3/b03."""
    ranges = [range(int(first), int(last) + 1) for first, last in _RANGE.findall(name)]
    if not all(ranges) or len({len(numbers) for numbers in ranges}) > 1:
        raise ModelError(f"'package:{name}': ranges count together and upwards, as in MODEL{{1..3}}/part{{01..03}}.bin")
    return [
        _RANGE.sub(lambda found, i=i: f"{int(found[1]) + i:0{len(found[1])}}", name)  # type: ignore[misc]
        for i in range(len(ranges[0]))
    ]


def _folders(module: str) -> list[Path]:
    # find_spec on a top-level name imports nothing; on a dotted one it would import the parents
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except ValueError:  # of __main__ and its like
        spec = None
    return [Path(folder, *rest) for folder in (spec and spec.submodule_search_locations) or []]


def _digest(folders: list[Path], file: str) -> str | None:
    """What SHA256SUMS says of a file."""
    for sums in ((folder / file).with_name("SHA256SUMS") for folder in folders):
        for line in sums.read_text().splitlines() if sums.is_file() else ():
            digest, _, name = line.partition(" ")
            if name.strip(" *") == Path(file).name:
                return digest
    return None


_PIP = f"{sys.executable} -m pip install --no-deps"
"""Into this environment: a bare `pip` is often another Python's."""


def _pip(modules: Iterable[str]) -> str:
    return f"try: {_PIP} {' '.join(module.replace('_', '-') for module in modules)}"


def _assembled(file: str, digest: str, parts: list[Path]) -> Path:
    """The file made of the installed parts."""
    place = Path("models") / digest[:16] / Path(file).name
    try:
        return with_cache(lambda folder: _joined(parts, folder / place, digest))
    except OSError as error:
        raise ModelError(f"{file!r} cannot be put together: {error}; set OCTAVO_CACHE to a folder with room") from None


def _joined(parts: list[Path], target: Path, digest: str) -> Path:
    if not _complete(target, parts):
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.parent / "lock"):  # gateway and shards may all start at once
            if not _complete(target, parts):
                _join(parts, target, digest)
    return target


def _complete(target: Path, parts: list[Path]) -> bool:
    return own_file(target) and target.stat().st_size == sum(part.stat().st_size for part in parts)


def _parts(module: str, file: str) -> list[Path]:
    """Every part in order.

    Raises:
        ModelError: packages that the first one asks for are missing.
    """
    top = module.split(".")[0]
    numbered = itertools.takewhile(importlib.util.find_spec, (f"{top}_part{i}" for i in itertools.count(1)))
    installed = [top, *numbered]
    if missing := [name for name in _required(top) if name not in installed]:
        raise ModelError(f"parts of {file!r} are not installed; {_pip(missing)}")
    rest = module.removeprefix(top)
    folders = [folder for name in installed for folder in _folders(name + rest)]
    parts = [part for folder in folders for part in sorted((folder / file).parent.glob(f"{Path(file).name}.part*"))]
    if not parts:
        raise ModelError(f"no parts of {file!r} are installed; {_pip([f'{top}_part1', '...'])}")
    return parts


def _required(module: str) -> list[str]:
    """The part packages that a package's metadata names."""
    try:
        required = importlib.metadata.requires(module) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [re.split(r"[^\w.-]", entry, maxsplit=1)[0].replace("-", "_") for entry in required]
    return [name for name in names if name.startswith(f"{module}_part")]


def _join(parts: list[Path], target: Path, digest: str) -> None:
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / target.name
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as piece:
                    while chunk := piece.read(_CHUNK):
                        found.update(chunk)
                        out.write(chunk)
        if found.hexdigest() != digest:
            raise ModelError(
                f"the {len(parts)} installed parts of {target.name} do not add up to its SHA-256 sum; "
                f"try: {_PIP} --force-reinstall with all of its packages"
            )
        whole.chmod(0o644)  # whatever the umask: what others may write is not read
        whole.rename(target)
    logger.info("put %s together from %d packages: %s", target.name, len(parts), target)
