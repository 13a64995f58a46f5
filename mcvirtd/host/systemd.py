"""Tells systemd how the daemon is; where systemd did not start it, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket


def ready(status: str = "") -> None:
    """The daemon serves."""
    _notify("READY=1", *([_status(status)] if status else []))


def status(text: str) -> None:
    """The line that `systemctl status` shows."""
    _notify(_status(text))


def stopping(text: str = "") -> None:
    """The daemon is about to end."""
    _notify("STOPPING=1", *([_status(text)] if text else []))


def alive() -> None:
    """The daemon is well: systemd's watchdog may wait again."""
    _notify("WATCHDOG=1")


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _notify(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    # A systemd that does not listen is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1)
        sender.sendto("\n".join(assignments).encode(), address)
