"""LoRA adapters of a gateway: what they are called, which model each is for, and where its files are.

An adapter is the hash of its files (`octavo.models.adapters`): it goes with every request, so what shards and routers
have cached under a name is never met again once other files stand behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from octavo.errors import BadRequest, ModelError, ModelNotReady, UnknownModel
from octavo.models.adapters import find_adapter, read_adapter
from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.request import Adapter
from octavo.source import resolve_source
from octavo_serve.api.folders import inside

logger = logging.getLogger("ray.serve")

MAX_ADAPTERS = 10_000
"""Names that a gateway knows at once, 1 kB each."""

_SHOWN = 20
"""Names that an error lists."""

_AGAIN = 1.0
"""Seconds until a request for an adapter that is being read should try again."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Of one model.

    Attributes:
        source: of the model.
        adapters: path by name.
        folders: below which `load` may read.
    """

    source: str
    adapters: Mapping[str, str]
    folders: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class AdapterEntry:
    """One adapter.

    Attributes:
        parent: the model that it is for.
        configured: it stands in the config, and goes when it does not any more.
        adapter: None until its files are read.
        error: why they cannot be.
    """

    name: str
    parent: str
    path: str
    configured: bool = False
    adapter: Adapter | None = None
    error: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def ready(self, explain: bool) -> Adapter:
        """Raises ModelNotReady where it is not; a path is named only if it may `explain`."""
        if self.adapter is not None:
            return self.adapter
        if not self.error:
            raise ModelNotReady(f"adapter {self.name!r} is being read; try again later", _AGAIN)
        raise ModelNotReady(f"adapter {self.name!r} has failed" + (f": {self.error}" if explain else ""))

    def card(self, parent: Mapping[str, object], explain: bool) -> dict[str, object]:
        """Its entry in /v1/models, after its parent's."""
        own = {"id": self.name, "created": self.created, "root": self.path if explain else None, "parent": self.parent}
        status = "ready" if self.adapter else "failed" if self.error else "loading"
        if status != "ready" and parent["status"] == "ready":
            return {**parent, **own, "status": status, "reason": (self.error or None) if explain else None}
        return {**parent, **own}


class Adapters:
    """All of a gateway's, by name.

    Attributes:
        alone: no other gateway serves these models: what is loaded here is loaded everywhere.
    """

    def __init__(self) -> None:
        self.entries: dict[str, AdapterEntry] = {}
        self.alone = True
        self._models: Mapping[str, AdapterSettings] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()  # one is read at a time: memory holds one, and a name gets what was read last

    def configure(self, models: Mapping[str, AdapterSettings], alone: bool) -> None:
        """Serve these models' adapters, and those that were loaded for them; their files are read beside the loop."""
        old, self._models, self.alone = self.entries, models, alone
        self.entries = {name: each for name, each in old.items() if not each.configured and each.parent in models}
        for parent, model in models.items():
            for name, path in model.adapters.items():
                known = old.get(name)
                if known is None or (known.parent, known.path, known.configured) != (parent, path, True):
                    known = AdapterEntry(name, parent, path, configured=True)
                    self._read(known, model.source)
                self.entries[name] = known

    def _read(self, entry: AdapterEntry, source: str) -> None:
        task = asyncio.create_task(self._fill(entry, source))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _fill(self, entry: AdapterEntry, source: str) -> None:
        try:
            async with self._turn:
                entry.adapter = await asyncio.to_thread(_checked, entry.name, entry.path, source)
        except Exception as error:  # whatever its files made of a library: nobody else's end
            entry.error = str(error) or repr(error)
            logger.warning("adapter %s of %s: %s", entry.name, entry.parent, entry.error)

    async def load(self, name: str, path: str, parent: str | None, taken: Iterable[str], *, again: bool) -> None:
        """Serve one more adapter.

        Args:
            path: inside one of the folders that the config names, or relative to one.
            parent: the model it is for; None: the only one that may.
            taken: other names.
            again: it may take the place of one of this name.

        Raises:
            BadRequest: it may not, or its files are not what this model takes.
        """
        if not self.alone:
            raise BadRequest("several gateways serve these models: name adapters in the config, which reaches them all")
        if not name.isprintable():
            raise BadRequest("lora_name must not hold what cannot be seen", "lora_name")
        async with self._turn:
            await self._load(name, path, self._parent(parent), taken, again=again)

    async def _load(self, name: str, path: str, found: str, taken: Iterable[str], *, again: bool) -> None:
        known = self.entries.get(name)
        if name in taken or (known is not None and known.parent != found):
            raise BadRequest(f"{name!r} is the name of something else that is served here", "lora_name")
        if known is not None and not again:
            raise BadRequest(f"adapter {name!r} is loaded; load_inplace: true puts another in its place", "lora_name")
        if known is None and len(self.entries) >= MAX_ADAPTERS:
            raise BadRequest(f"{MAX_ADAPTERS} adapters are loaded: unload one")
        model = self._models[found]
        place = await asyncio.to_thread(inside, path, model.folders, "lora_path", "lora_folders")
        try:
            adapter = await asyncio.to_thread(_checked, name, place, model.source)
        except ModelError as error:
            raise BadRequest(f"adapter {name!r} cannot be loaded: {error}", "lora_path") from None
        if self._models.get(found) != model:
            raise BadRequest(f"the config of {found!r} has changed meanwhile: load the adapter again")
        entry = known or AdapterEntry(name, found, place)  # which may have been unloaded meanwhile
        entry.path, entry.adapter, entry.error = place, adapter, ""
        self.entries[name] = entry

    def unload(self, name: str) -> None:
        """Serve an adapter no more; requests that run go on.

        Raises:
            UnknownModel: there is none.
        """
        if name not in self.entries:
            known = some_names(self.entries) or "none"
            raise UnknownModel(f"adapter {name!r:.80} is not loaded; loaded: {known}", "lora_name")
        if not self.alone:
            raise BadRequest("several gateways serve these models: take the adapter out of the config")
        del self.entries[name]

    def _parent(self, parent: str | None) -> str:
        able = [name for name, model in self._models.items() if model.folders]
        if not able:
            raise BadRequest("no adapter may be loaded here: a model's lora_folders in the config says where they lie")
        if parent is None and len(able) == 1:
            return able[0]
        if parent not in able:
            raise BadRequest(f"model must be one that adapters may be loaded for: {', '.join(able)}", "model")
        return parent


def some_names(names: Collection[str]) -> str:
    """The first of them: a request with a wrong name is not to be answered with thousands."""
    rest = len(names) - _SHOWN
    return ", ".join(islice(names, _SHOWN)) + (f" and {rest} more" if rest > 0 else "")


def _checked(name: str, path: str, source: str) -> Adapter:
    """An adapter as its files say now, if they are one for this model.

    Raises:
        ModelError: they are not.
    """
    read_adapter(Path(path), share_of(read_spec(resolve_source(source))))  # first: what is too large is not hashed
    return find_adapter(name, Path(path))
