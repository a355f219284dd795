"""`octavo serve --settings`: every flag with its values and its sentence."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding

from octavo_serve.command.flags import Flag, flags


def show() -> None:
    """Print them, in the order of a config's settings."""
    console = Console(highlight=False, markup=False)
    for flag in flags().values():
        console.print(f"--{flag.name} {values(flag)}".rstrip(), style="bold", soft_wrap=True)
        if flag.says:
            console.print(Padding(flag.says, (0, 0, 0, 6)))


def values(flag: Flag) -> str:
    """What may follow a flag, and its default."""
    words = [kind for kind in flag.kinds if isinstance(kind, str)]
    kinds = [kind.__name__ for kind in flag.kinds if kind in (int, float, str)]
    shape = "|".join(words) or ("" if flag.is_switch else "|".join(kinds) or "{...}")
    shape += "..." if flag.is_list else ""
    default = "" if flag.default is None else f"({str(flag.default).lower() if flag.is_switch else flag.default})"
    return f"{shape} {default}".strip()
