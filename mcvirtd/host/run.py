"""The only place that starts a program: no shell, a clean environment, a deadline, bounded output."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePath
from typing import IO

import msgspec

from mcvirt.errors import CommandFailed, DeadlinePassed, ProgramMissing, TaskCancelled

log = logging.getLogger(__name__)

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
MOST_OUTPUT = 16 * 1024**2
MOST_MESSAGES = 64 * 1024
MOST_LINE = 64 * 1024
GRACE = 2.0
LOOK_FOR_CANCEL = 0.1
LOOK_FOR_STOP = 0.5

PACKAGES = {
    **dict.fromkeys(("lvm", "lvs", "vgs", "lvcreate", "lvremove", "lvextend", "lvchange", "vgchange"), "lvm2"),
    **dict.fromkeys(("drbdadm", "drbdsetup", "drbdmeta"), "drbd-utils"),
    **dict.fromkeys(("qemu-img", "qemu-nbd", "qemu-io"), "qemu-utils"),
    "qemu-system-x86_64": "qemu-system-x86",
    "thin_check": "thin-provisioning-tools",
    "virsh": "libvirt-clients",
    "ip": "iproute2",
    "modprobe": "kmod",
}


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a program said, and the status it ended with."""

    stdout: str
    stderr: str
    status: int


def run(
    argv: Sequence[str],
    *,
    within: float,
    input: bytes | None = None,
    cancel: threading.Event | None = None,
    ok_statuses: Collection[int] = (0,),
) -> Output:
    """Run a program to its end and return what it printed.

    Raises ProgramMissing if it is not installed, CommandFailed if it ends with another status than *ok_statuses* or
    prints without end, DeadlinePassed after *within* seconds, and TaskCancelled when *cancel* is set; in the last three
    cases the program and those it started were ended first. The arguments are logged: no secret may be among them.
    """
    program = PurePath(argv[0]).name
    deadline = time.monotonic() + within
    process = _started(argv, input)
    with _Conversation(process, input) as conversation:
        try:
            conversation.hold(program, deadline, within, cancel)
        except BaseException:
            conversation.end()
            raise
        stdout, stderr = conversation.stdout.text(), conversation.stderr.text()
    status = process.returncode
    log.debug("%s ended with status %d", program, status)
    if status not in ok_statuses:
        raise CommandFailed(program=program, status=status, output=short(stderr) or short(stdout) or "no message.")
    return Output(stdout=stdout, stderr=stderr, status=status)


def _started(argv: Sequence[str], input: bytes | None) -> subprocess.Popen[bytes]:
    program = PurePath(argv[0]).name
    log.debug("run %s", argv)
    try:
        return subprocess.Popen(  # noqa: S603 - an argument list made by us, never a shell
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise missing(program) from None
    except OSError as error:
        raise CommandFailed(program=program, status=126, output=f"{error.strerror}.") from error


def stream(argv: Sequence[str], heard: Callable[[str], None], stop: threading.Event) -> int:
    """Run a program that is not to end, call *heard* with each line it prints, and return its status if it ends.

    When *stop* is set the program is ended. What it complains of is logged. Raises ProgramMissing and CommandFailed as
    ``run`` does; a line longer than MOST_LINE ends it.
    """
    process = _started(argv, None)
    with _Conversation(process, None) as conversation:
        try:
            conversation.listen_on(PurePath(argv[0]).name, heard, stop)
        finally:
            if process.poll() is None:
                conversation.end()
        if complaint := short(conversation.stderr.text()):
            log.warning("%s: %s", PurePath(argv[0]).name, complaint)
    return -1 if process.returncode is None else process.returncode


def installed(program: str) -> bool:
    """Whether ``run`` would find the program."""
    return shutil.which(program, path=ENVIRONMENT["PATH"]) is not None


def missing(program: str) -> ProgramMissing:
    """The error for a program that is not installed, with the package that has it where we know it."""
    package = PACKAGES.get(program)
    hint = f" It is in the Debian package {package}." if package else ""
    return ProgramMissing(program=program, status=127, output="not installed", hint=hint)


def short(text: str, most: int = 500) -> str:
    """*text* on one line, printable, and no longer than *most* letters; the end is kept, where errors stand."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= most else "..." + line[3 - most :]


class _Kept:
    """The first *most* bytes of a stream."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.data = bytearray()
        self.overflowed = False

    def add(self, chunk: bytes) -> None:
        room = self.most - len(self.data)
        self.data += chunk[:room]
        self.overflowed = self.overflowed or len(chunk) > room

    def take(self) -> bytes:
        """What has come since the last time; it is kept no longer."""
        data, self.data = bytes(self.data), bytearray()
        return data

    def text(self) -> str:
        return self.data.decode("utf-8", errors="replace")


class _Conversation:
    """Feeds a program and listens to it until it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], input: bytes | None) -> None:
        self.process = process
        self.unsent = memoryview(input or b"")
        self.stdout, self.stderr = _Kept(MOST_OUTPUT), _Kept(MOST_MESSAGES)

    def __enter__(self) -> _Conversation:
        self.selector = selectors.DefaultSelector()
        self.ended = os.pidfd_open(self.process.pid)
        self.selector.register(self.ended, selectors.EVENT_READ)
        for stream, kept in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self.selector.register(stream, selectors.EVENT_READ, kept)
        if (stdin := self.process.stdin) is not None:
            os.set_blocking(stdin.fileno(), False)
            self.selector.register(stdin, selectors.EVENT_WRITE)
        return self

    def __exit__(self, *exc: object) -> None:
        self.selector.close()
        os.close(self.ended)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def hold(self, program: str, deadline: float, within: float, cancel: threading.Event | None) -> None:
        while True:
            if cancel is not None and cancel.is_set():
                raise TaskCancelled(by="")
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlinePassed(what=f"the end of {program}", seconds=within, why="it was stopped.")
            for key, _ in self.selector.select(left if cancel is None else min(left, LOOK_FOR_CANCEL)):
                if key.fd == self.ended:
                    # Its pipes may live on in a process it left behind (LVM starts dmeventd): take what is there.
                    self._drain()
                    self.process.wait()
                    return self._refuse_overflow(program)
                if isinstance(key.data, _Kept):
                    self._listen(key.fileobj, key.data)  # type: ignore[arg-type]
                else:
                    self._feed(key.fileobj)  # type: ignore[arg-type]
            self._refuse_overflow(program)

    def listen_on(self, program: str, heard: Callable[[str], None], stop: threading.Event) -> None:
        """Hand on line by line until the program has ended or *stop* is set."""
        rest, ended = b"", False
        while not (stop.is_set() or ended):
            # In slices, as with a cancelled run: an event can't be selected on.
            for key, _ in self.selector.select(LOOK_FOR_STOP):
                if isinstance(key.data, _Kept):
                    self._listen(key.fileobj, key.data)  # type: ignore[arg-type]
                else:
                    ended = True
            if ended:
                self._drain()
                self.process.wait()
            *lines, rest = (rest + self.stdout.take()).split(b"\n")
            for line in lines:
                heard(line.decode("utf-8", errors="replace"))
            if len(rest) > MOST_LINE:
                raise CommandFailed(program=program, status=-1, output=f"a line has more than {MOST_LINE} bytes.")

    def end(self) -> None:
        """End the program and what it started: politely first, since LVM shields its critical sections from SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            gone, _, _ = select.select([self.ended], [], [], GRACE)
        # Only now: until it is waited for, its number can't become that of another group.
        if gone:
            self.process.wait()
        else:
            log.warning("process %d does not end, even when killed", self.process.pid)

    def _refuse_overflow(self, program: str) -> None:
        if self.stdout.overflowed:
            raise CommandFailed(program=program, status=-1, output=f"it printed more than {MOST_OUTPUT} bytes.")

    def _listen(self, stream: IO[bytes], kept: _Kept) -> bool:
        """Take one piece; False when there is none (now, or ever again)."""
        try:
            chunk = os.read(stream.fileno(), 65536)
        except BlockingIOError:
            return False
        if chunk:
            kept.add(chunk)
        else:
            self.selector.unregister(stream)
        return bool(chunk)

    def _drain(self) -> None:
        for key in list(self.selector.get_map().values()):
            if isinstance(key.data, _Kept):
                while not key.data.overflowed and self._listen(key.fileobj, key.data):  # type: ignore[arg-type]
                    pass

    def _feed(self, stdin: IO[bytes]) -> None:
        try:
            self.unsent = self.unsent[os.write(stdin.fileno(), self.unsent[:65536]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = self.unsent[:0]  # it does not want the rest; its status says whether that is an error
        if not self.unsent:
            self.selector.unregister(stdin)
            with contextlib.suppress(OSError):
                stdin.close()
