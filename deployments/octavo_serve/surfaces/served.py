"""The protocols that the gateway serves: each has a folder, and a line here."""

from __future__ import annotations

from typing import Any

from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.surface import COMPLETIONS

SURFACES: tuple[Surface[Any, Any, Any], ...] = (CHAT, COMPLETIONS)
