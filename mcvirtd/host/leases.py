"""Leases: files that say until when something may go on, in seconds since this machine booted. No clock that is set
moves them, and after a boot none counts any more."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from mcvirtd.host import files
from mcvirtd.host.run import run

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_WITHIN = 60.0
_LOCK, _ALIVE = ".lock", ".alive"


class Leases:
    """Those in *directory*, one for each name. Several processes may use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Make the directory."""
        with files.told("make", self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In the block nobody else begins to look after leases, or ends that. To be taken after `held`."""
        with self._locked(_LOCK, fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """In the block nobody else takes, gives up or ends the lease of that name; others are nobody's concern."""
        with self._locked(f".{name}{_LOCK}", fcntl.LOCK_EX):
            yield

    def take(self, name: str, seconds: float) -> None:
        """From now on there is a lease of that name, for so many seconds; to be called while it is `held`."""
        path = self.directory / name
        new = path.with_name(f".{name}.new")
        with files.told("write", path):
            new.write_text(f"{_boot()} {time.clock_gettime(time.CLOCK_BOOTTIME) + seconds:.3f}\n")
            new.replace(path)

    def end(self, name: str) -> None:
        """It has ended."""
        self.take(name, -1.0)

    def exists(self, name: str) -> bool:
        """Whether there is one, ended or not."""
        return (self.directory / name).exists()

    def left(self, name: str) -> float:
        """How many seconds it is good for; 0 if it has ended, or there is none."""
        try:
            boot, _, until = (self.directory / name).read_text().partition(" ")
            return max(0.0, float(until) - time.clock_gettime(time.CLOCK_BOOTTIME)) if boot == _boot() else 0.0
        except (OSError, ValueError):
            return 0.0

    def drop(self, name: str) -> None:
        """There is none any more."""
        with files.told("delete", self.directory / name):
            (self.directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All there are."""
        try:
            return sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    # --- who looks after them -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def looking_after(self) -> Iterator[bool]:
        """In the block this process is the one that ends leases; False if there is another."""
        try:
            with self._locked(_ALIVE, fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
        except BlockingIOError:
            yield False

    def looked_after(self) -> bool:
        """Whether there is such a process now."""
        try:
            with self._locked(_ALIVE, fcntl.LOCK_SH | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return True

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        with (self.directory / name).open("a") as file:
            fcntl.flock(file, how)
            yield


def start_apart(unit: str, argv: list[str]) -> None:
    """Have systemd run a program that outlives this process, whatever ends it; returns when the program is ready."""
    run(
        [
            *("systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=Type=notify"),
            *("--property=Restart=on-failure", "--property=RestartSec=1s", "--", *argv),
        ],
        within=_START_WITHIN,
    )


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
