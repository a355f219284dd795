"""Ports of this machine: finds free ones, and the process that uses a taken one."""

from __future__ import annotations

import contextlib
import ipaddress
import pwd
import random
import socket
from functools import lru_cache
from pathlib import Path

_LISTENS = "0A"


def family(host: str) -> socket.AddressFamily:
    """The address family of an address or a host name."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def why_not(host: str, port: int) -> str | None:
    """Why nothing can listen there, as a clause; None if it is possible."""
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if holder := holder_of(port):
                return f"port {port} is taken by {holder}"
            return f"port {port} of {host} cannot be listened on ({reason})"
    return None


def holder_of(port: int) -> str | None:
    """A description of the process that listens on a port, as far as this user may know; None if none does, or without
    /proc."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                    return _owner(inode) or f"a process of {_user(int(uid))}"
    return None


def _owner(inode: str) -> str | None:
    """The process that has a socket open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in (process / "fd").iterdir():
                if fd.is_symlink() and str(fd.readlink()) == f"socket:[{inode}]":
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    return f"process {process.name} ({command[:120]})"
    return None


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def free_block(count: int, without: int = 0) -> int:
    """The first of `count` consecutive ports on which nothing listens now, below the range of ephemeral ports.

    Args:
        without: a port to leave out, because something will listen on it.
    """
    while True:
        first = random.randrange(10_000, 32_000, count)
        if without in range(first, first + count):
            continue
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("0.0.0.0", port))
            return first


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this address; False for names other than
    localhost."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def in_url(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def here(host: str) -> str:
    """The address at which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
