"""mcvirtd that kills itself, for tests: `kill -9` at the N-th moment that matters.

Those moments are before and after each commit to the state file, and before and after each act on libvirt or storage.
The file named by $CRASH_PLAN says what to do: "count" writes each moment's name to $CRASH_LOG; a number N kills the
process at the N-th moment (from 1) since the plan was written, a moment's name at the next one of that name.
Without the file nothing happens.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcvirtd.hypervisor.libvirt import Hypervisor
from mcvirtd.state.store import Store
from mcvirtd.storage.file_volumes import FileVolumes

_PLAN = Path(os.environ["CRASH_PLAN"])
_LOG = Path(os.environ["CRASH_LOG"])
_lock = threading.Lock()
_seen = 0
_plan_seen = ""

_ACTS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Store, ("_commit",)),
    (
        Hypervisor,
        ("define", "undefine", "start", "destroy", "attach_device", "detach_device", "update_device", "resize_block"),
    ),
    (FileVolumes, ("create", "delete", "grow", "mark", "unmark")),
)


def _moment(name: str) -> None:
    global _seen, _plan_seen  # noqa: PLW0603 - one plan a process
    with _lock:
        try:
            plan = _PLAN.read_text()
        except FileNotFoundError:
            return
        if plan != _plan_seen:
            _plan_seen, _seen = plan, 0
        _seen += 1
        if plan == "count":
            with _LOG.open("a") as file:
                file.write(name + "\n")
        elif plan in (name, str(_seen)):
            with _LOG.open("a") as file:
                file.write(f"killed at {_seen}: {name}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def _with_moments(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "_commit" and not (args[0].puts or args[0].deletes or args[0].statements):
            return function(self, *args, **kwargs)
        _moment(f"before {name}")
        result = function(self, *args, **kwargs)
        _moment(f"after {name}")
        return result

    return wrapped


def main() -> int:
    """Run mcvirtd with the moments in place."""
    for cls, names in _ACTS:
        for name in names:
            setattr(cls, name, _with_moments(getattr(cls, name), name))
    from mcvirtd.main import main as mcvirtd

    return mcvirtd()


if __name__ == "__main__":
    sys.exit(main())
