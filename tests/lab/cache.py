"""Where the lab keeps what takes long to make, by the hash of what goes in; and nothing half made is ever used."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("MCVIRT_LAB_CACHE") or ROOT / ".cache/lab").absolute()

KEPT = 2
"""So many of a kind are kept, the ones used last."""


class LabFailed(Exception):
    """Something in the lab did not happen, or not in time; the text has what is known about why."""


class CannotRun(LabFailed):
    """This machine has not what the lab needs."""


def say(text: str) -> None:
    """Progress, for people; pytest shows it with a test that fails."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


phases: list[tuple[str, float]] = []
"""What took how many seconds, for the time table."""


def took(what: str, begun: float) -> None:
    """Say that something is done that began at *begun* on the monotonic clock."""
    seconds = time.monotonic() - begun
    phases.append((what, seconds))
    say(f"{what} in {seconds:.1f} s")


def digest(*what: object) -> str:
    """A short name for these values."""
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]


def content(base: Path, paths: Iterable[Path]) -> list[tuple[str, str, bool]]:
    """What ``digest`` is to know of files and directories below *base*: names, contents, and which are programs."""
    files = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}
    return [
        (str(file.relative_to(base)), hashlib.sha256(file.read_bytes()).hexdigest(), bool(file.stat().st_mode & 0o100))
        for file in sorted(files)
        if "__pycache__" not in file.parts
    ]


def run(argv: Sequence[str | Path], *, within: float, **keywords: object) -> str:
    """Run a program of this machine and return what it printed; LabFailed, with that, if it fails or takes too long."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
            **keywords,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        raise LabFailed(f"{' '.join(words)}: not done within {within:.0f} s\n{said}") from None
    if done.returncode:
        raise LabFailed(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def made(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory *kind*-*key* of the cache, which *build* fills if it is not there.

    It is filled under another name and gets its own when it is complete. Whoever else wants it meanwhile waits. It is
    not thrown away before this process ends.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    place = CACHE / f"{kind}-{key}"
    with locked(place.name):
        if not place.exists():
            unfinished = CACHE / f"{place.name}.unfinished"
            remove(unfinished)
            unfinished.mkdir()
            begun = time.monotonic()
            say(f"making {place.name}")
            try:
                build(unfinished)
            except BaseException:
                remove(unfinished)
                raise
            unfinished.rename(place)
            took(f"made {place.name}", begun)
        _hold(place)
    os.utime(place)
    _drop_old(kind)
    return place


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time is in here with the same name; the lock goes with its holder, however that ends."""
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_held: dict[Path, int] = {}


def _hold(place: Path) -> None:
    if place not in _held:
        _held[place] = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        # Machines keep it open too: they may outlive us.
        os.set_inheritable(_held[place], True)
        fcntl.flock(_held[place], fcntl.LOCK_SH)


def held() -> tuple[int, ...]:
    """Descriptors to hand on to processes that use what is in the cache."""
    return tuple(_held.values())


def _drop_old(kind: str) -> None:
    places = [path for path in CACHE.glob(f"{kind}-*") if path.is_dir() and "." not in path.name]
    for place in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        with contextlib.suppress(OSError), _unused(place):
            remove(place)


@contextlib.contextmanager
def _unused(place: Path) -> Iterator[None]:
    """OSError if somebody uses the directory, or waits for it."""
    with (CACHE / f"{place.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a directory with what is in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
