"""What is in the cache is whole, and made once."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lab import cache
from tests.lab.alongside import NAME


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Whoever makes something just now would make it there.
    assert NAME not in [thread.name for thread in threading.enumerate()]
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    monkeypatch.setattr(cache, "phases", [])
    monkeypatch.setattr(cache, "_held", {})
    return tmp_path


def whole(directory: Path) -> None:
    (directory / "first").write_text("1")
    (directory / "last").write_text("2")


def test_made_once() -> None:
    made = cache.made("thing", "k", whole)
    assert cache.made("thing", "k", lambda _: pytest.fail("made again")) == made
    assert (made / "last").read_text() == "2"


def test_what_fails_half_way_is_not_there(place: Path) -> None:
    def half(directory: Path) -> None:
        (directory / "first").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.made("thing", "k", half)
    assert [path.name for path in place.iterdir()] == ["thing-k.lock"]


def test_a_maker_that_is_killed_leaves_nothing_that_is_used(place: Path) -> None:
    code = (
        "import sys, pathlib; from tests.lab import cache; cache.CACHE = pathlib.Path(sys.argv[1])\n"
        "def half(directory):\n"
        "    (directory / 'rubbish').write_text('1'); print('half', flush=True); sys.stdin.read()\n"
        "cache.made('thing', 'k', half)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        cwd=cache.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as maker:
        assert maker.stdout is not None and maker.stdout.readline() == b"half\n"
        maker.send_signal(signal.SIGKILL)
    made = cache.made("thing", "k", whole)
    assert sorted(path.name for path in made.iterdir()) == ["first", "last"]
    assert not (place / "thing-k.unfinished").exists()


def test_two_that_want_the_same_make_it_once() -> None:
    begun, go_on, made = threading.Event(), threading.Event(), list[str]()

    def slowly(directory: Path) -> None:
        begun.set()
        assert go_on.wait(30)
        made.append("once")

    threads = [threading.Thread(target=cache.made, args=("thing", "k", slowly)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert made == ["once"]


def test_old_ones_go_unless_somebody_uses_them(place: Path) -> None:
    def make(key: str, when: int) -> Path:
        made = cache.made("thing", key, whole)
        # In another process, holding it would end with that.
        os.close(cache._held.pop(made))
        os.utime(made, (when, when))
        return made

    used = make("a", 1)
    with (place / "user").open("w"):
        descriptor = os.open(used, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        for number, key in enumerate("bcd", 2):
            make(key, number)
        make("e", 5)
        os.close(descriptor)
    assert sorted(path.name for path in place.glob("thing-?")) == ["thing-a", "thing-d", "thing-e"]


def test_contents_and_modes_are_in_the_key(place: Path) -> None:
    keys = []
    file = place / "file"
    for text, mode in (("a", 0o644), ("b", 0o644), ("b", 0o755)):
        file.write_text(text)
        file.chmod(mode)
        keys.append(cache.digest(cache.content(place, [place])))
    assert len(set(keys)) == 3


def test_a_program_that_hangs_or_fails_is_told() -> None:
    with pytest.raises(cache.LabFailed, match=r"(?s)not done within 0 s.*waiting"):
        cache.run(["sh", "-c", "echo waiting; sleep 60"], within=0.3)
    with pytest.raises(cache.LabFailed, match=r"(?s)status 3.*why"):
        cache.run(["sh", "-c", "echo why >&2; exit 3"], within=30)
