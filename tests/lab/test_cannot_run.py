"""Where the lab can't be had, its tests say why and are skipped; where it must be had, they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import cache, image, system
from tests.lab.cache import ROOT, CannotRun, LabFailed


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for programs that are found before the machine's own, and a cache that is empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    return directory


def put(path: Path, said: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    path.chmod(0o755)


def test_missing_programs_are_named_by_their_packages(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(CannotRun, match=r"the Debian packages .*mmdebstrap, .*qemu-system-x86, .*`make deps` installs"):
        image.refuse_where_it_cannot_be()


def test_no_network_for_the_system(programs: Path) -> None:
    put(programs / "mmdebstrap", "E: Temporary failure resolving deb.debian.org")
    with pytest.raises(CannotRun, match=r"(?s)from the network, and mmdebstrap fails.*Temporary failure resolving"):
        system.system()
    assert [path.name for path in cache.CACHE.iterdir() if path.suffix != ".lock"] == []


def test_no_network_for_the_wheels_is_told_from_wheels_that_fail(programs: Path) -> None:
    put(programs / "make", "NewConnectionError: Failed to establish a new connection")
    with pytest.raises(CannotRun, match="from the network"):
        image._wheels()
    put(programs / "make", "error: invalid command bdist_wheel")
    with pytest.raises(LabFailed, match="bdist_wheel") as failed:
        image._wheels()
    assert not isinstance(failed.value, CannotRun)


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_skipped_unless_it_is_required(required: str, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "tests/lab/broken_daemon.py"],
        cwd=ROOT,
        env={**os.environ, "PATH": "/nonexistent", "MCVIRT_LAB_REQUIRED": required},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
    assert "the lab needs the Debian packages" in done.stdout
