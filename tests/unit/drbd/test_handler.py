"""The handler program, the directory that it writes to, and the socket that it rings at; the real ones together."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirtd.drbd import handler
from mcvirtd.drbd.doorbell import Doorbell
from mcvirtd.drbd.spool import HandlerEvent, Spool

ROOT = Path(__file__).resolve().parents[3]
NAME = "mcvirt-hd-1"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "drbd")
    made.prepare()
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRBD_RESOURCE", NAME)
    monkeypatch.setenv("DRBD_MINOR", "3")
    monkeypatch.setenv("DRBD_PEER", "node2")


class Bell:
    """A daemon that answers with a number, or breaks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: int | Exception = 0
        self.rung: list[HandlerEvent] = []
        self.doorbell = Doorbell(path, self._answered)
        self.doorbell.start()

    def _answered(self, event: HandlerEvent) -> int:
        self.rung.append(event)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    made = Bell(tmp_path / "drbd.sock")
    yield made
    made.doorbell.stop()


@pytest.mark.usefixtures("told")
def test_an_event_is_kept_while_nobody_listens(spool: Spool, tmp_path: Path) -> None:
    assert handler.main(["out-of-sync", str(spool.directory), str(tmp_path / "nobody")]) == 0
    (path,) = spool.directory.glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    heard: list[HandlerEvent] = []
    spool.hear(heard.append)
    spool.read()
    assert [(event.event, event.resource, event.minor, event.peer) for event in heard] == [
        ("out-of-sync", NAME, "3", "node2")
    ]
    assert heard[0].at > 1e9
    assert list(spool.directory.glob("*.json")) == []


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(("answer", "status"), [(4, 4), (5, 5), (6, 6), (1, 1), (0, 5), (99, 5), (ValueError("x"), 5)])
def test_the_kernel_is_told_what_the_daemon_knows_of_the_other_side(
    spool: Spool, bell: Bell, answer: int | Exception, status: int
) -> None:
    bell.answer = answer
    assert handler.main(["fence-peer", str(spool.directory), str(bell.path)]) == status
    assert [event.event for event in bell.rung] == ["fence-peer"]


@pytest.mark.usefixtures("told")
def test_a_daemon_that_is_away_or_hangs_means_that_the_other_side_is_not_reached(
    spool: Spool, tmp_path: Path, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handler.main(["fence-peer", str(spool.directory), str(tmp_path / "nobody")]) == handler.UNREACHABLE
    monkeypatch.setattr(handler, "ASK_WITHIN", 0.2)
    stuck = threading.Event()
    bell.doorbell._answer = lambda event: int(stuck.wait(20))
    assert handler.main(["fence-peer", str(spool.directory), str(bell.path)]) == handler.UNREACHABLE
    stuck.set()


@pytest.mark.usefixtures("told")
def test_a_full_disk_does_not_keep_the_kernel_waiting(bell: Bell, capsys: pytest.CaptureFixture[str]) -> None:
    bell.answer = 4
    assert handler.main(["fence-peer", "/dev/null/spool", str(bell.path)]) == 4
    assert f"fence-peer of {NAME} is not kept" in capsys.readouterr().err


@pytest.mark.usefixtures("told")
def test_the_daemon_is_told_what_could_not_be_kept(spool: Spool, bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handler.main(["split-brain", "/dev/null/spool", str(bell.path)]) == 0
    assert handler.main(["split-brain", str(spool.directory), str(bell.path)]) == 0
    monkeypatch.setattr(handler.os, "write", lambda descriptor, text: len(text) - 1)  # as much as there was room for
    assert handler.main(["split-brain", str(spool.directory), str(bell.path)]) == 0
    assert [(event.resource, event.kept) for event in bell.rung] == [(NAME, False), (NAME, True), (NAME, False)]
    assert len(list(spool.directory.glob("*.json"))) == 1


def test_what_is_written_nowhere_is_said_until_it_was_dealt_with(spool: Spool) -> None:
    heard: list[str] = []
    fails = True

    def hearer(event: HandlerEvent) -> None:
        if fails:
            raise OSError("on purpose")
        heard.append(event.event)

    spool.hear(hearer)
    spool.take(HandlerEvent(event="e1", resource=NAME, kept=False))
    spool.take(HandlerEvent(event="e2", resource=NAME, kept=False))
    spool.read()
    fails = False
    spool.read()
    spool.read()
    assert heard == ["e1", "e2"]


def test_the_program_is_installed_code_that_imports_little(spool: Spool, bell: Bell) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom mcvirtd.drbd.handler import main\n"
    script += "status = main(sys.argv[1:])\nassert not {'msgspec', 'Pyro4', 'logging', 'pathlib'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, "split-brain", str(spool.directory), str(bell.path)],
        env={"DRBD_RESOURCE": NAME},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [event.resource for event in bell.rung] == [NAME]
    assert handler.main([]) == 2


def test_what_a_hearer_fails_at_is_said_again_and_in_order(spool: Spool) -> None:
    for number, name in enumerate(("mcvirt-a", "mcvirt-a", "mcvirt-b")):
        handler.keep(str(spool.directory), {"event": f"e{number}", "resource": name, "at": 1.0})
    heard: list[str] = []
    fails = True

    def hearer(event: HandlerEvent) -> None:
        if fails and event.resource == "mcvirt-a":
            raise OSError("on purpose")
        heard.append(event.event)

    spool.hear(hearer)
    spool.read()
    assert heard == ["e2"]
    fails = False
    spool.read()
    assert heard == ["e2", "e0", "e1"]
    spool.read()
    assert heard == ["e2", "e0", "e1"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"event": "x", "resource": "../../etc/passwd"}', b"\xff\x00"])
def test_what_is_no_event_is_put_aside(spool: Spool, content: bytes) -> None:
    (spool.directory / "00000000000000000001-1-x.json").write_bytes(content)
    spool.hear(lambda event: pytest.fail(f"heard {event}"))
    spool.read()
    assert [path.name for path in spool.directory.glob("bad-*")] == ["bad-00000000000000000001-1-x.json"]


def test_splits_are_remembered_across_restarts(spool: Spool) -> None:
    spool.split(NAME)
    spool.split(NAME)
    assert list(Spool(spool.directory).splits()) == [NAME]
    spool.joined(NAME)
    spool.joined(NAME)
    assert list(spool.splits()) == []
    assert list(Spool(spool.directory / "none").splits()) == []


def test_only_root_rings_and_nonsense_gets_no_answer(bell: Bell, tmp_path: Path) -> None:
    assert stat.S_IMODE(bell.path.stat().st_mode) == 0o600
    assert handler.tell(str(bell.path), {"event": "x"}, 5) is None
    assert handler.tell(str(bell.path), {"event": "x", "resource": "a;b"}, 5) is None
    assert handler.tell(str(bell.path), {"event": "x", "resource": NAME, "peer": "p" * 9999}, 5) is None
    assert bell.rung == []
    assert handler.tell(str(bell.path), {"event": "x", "resource": NAME}, 5) == 0
    bell.doorbell.stop()
    assert not bell.path.exists()
    assert handler.tell(str(bell.path), {"event": "x", "resource": NAME}, 5) is None


def test_a_doorbell_takes_the_place_of_one_that_was_left(tmp_path: Path) -> None:
    path = tmp_path / "drbd.sock"
    path.write_text("left by a crash")
    bell = Bell(path)
    assert handler.tell(str(path), json.loads(json.dumps({"event": "x", "resource": NAME})), 5) == 0
    bell.doorbell.stop()
    assert list(tmp_path.iterdir()) == []
