"""What the nodes of a lab stand on: namespaces of their own, two networks in them, and a directory.

All of it goes when the lab is closed *or* when the process that made it ends, even by SIGKILL: as soon as nobody holds
the other end of its standard input, process 1 of the namespace ends all others, and removes the directory. What is left
where process 1 was itself killed is removed by the next lab that starts.
A lab for people, which is to outlive the command that made it, is kept until `end` is called.

No port of the machine and no name of a namespace is taken, so that any number of labs are beside each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

BRIDGES = {"mgmt": ("10.8.0.254/24", "02:6d:63:76:00:01"), "lan": ("10.9.0.254/24", "02:6d:63:76:00:02")}
"""The tests' way in, and the cluster's network; the addresses are the lab's own.

A restored node remembers the hardware addresses that it saw when it was saved, and answers to them for half a minute:
they are the same in every lab.
"""
_PID = "init.pid"


class GroundFailed(Exception):
    """The namespaces could not be made, or do not end."""


class Ground:
    """The namespaces of one lab, and its directory: made by ``start``, found again by ``find``."""

    def __init__(self, directory: Path, pid: int, life: IO[bytes] | None) -> None:
        self.directory = directory
        self.pid = pid
        self._life = life

    @classmethod
    def start(cls, directory: Path, *, keep: bool = False, within: float = 30.0) -> Ground:
        """Make the directory and the namespaces; with *keep* they outlive this process."""
        directory.mkdir(parents=True)
        argv = [
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            *_SELF,
            "keep" if keep else "with",
            str(directory),
        ]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What outlives us must not keep open what our caller reads: `make lab | tee` would not end.
            stderr=subprocess.DEVNULL if keep else None,
            cwd=directory,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        answer = process.stdout.readline() if _readable(process.stdout.fileno(), within) else b""
        if not answer.strip().isdigit():
            process.kill()
            shutil.rmtree(directory, ignore_errors=True)
            raise GroundFailed("the lab's namespaces could not be made")
        ground = cls(directory, int(answer), process.stdin)
        try:
            for name, (address, hardware) in BRIDGES.items():
                options = ("stp_state", "0", "forward_delay", "0")
                ground.ip("link", "add", name, "address", hardware, "type", "bridge", *options)
                ground.ip("addr", "add", address, "dev", name)
                ground.ip("link", "set", name, "up")
            (directory / _PID).write_text(str(ground.pid))
        except BaseException:
            ground.end()
            raise
        return ground

    @classmethod
    def find(cls, directory: Path) -> Ground | None:
        """The ground that lives in *directory*, if one does."""
        if not _alive(directory):
            return None
        try:
            return cls(directory, int((directory / _PID).read_text()), None)
        except (FileNotFoundError, ValueError):
            return None

    @property
    def here(self) -> Path:
        """The directory by a name that is short enough for a socket's address, however deep it lies."""
        return Path(f"/proc/{self.pid}/cwd")

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The argument list that runs *argv* in the namespaces, where it ends with the lab."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--", *(str(word) for word in argv)]

    def ip(self, *words: str) -> None:
        """Change the lab's networks."""
        done = subprocess.run(self.inside(["ip", *words]), capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise GroundFailed(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def tap(self, name: str, bridge: str) -> None:
        """Make a network device for a machine, and plug it in; nothing happens if it is there."""
        if (
            f"{name}:"
            not in subprocess.run(self.inside(["ip", "-o", "link"]), capture_output=True, text=True, check=True).stdout
        ):
            # Offloads go through (vnet_hdr): an emulated machine has better things to do than checksums.
            self.ip("tuntap", "add", name, "mode", "tap", "vnet_hdr")
        self.ip("link", "set", name, "master", bridge, "up")

    def end(self, within: float = 30.0) -> None:
        """End every process in the namespaces, and remove the directory."""
        try:
            init = os.pidfd_open(self.pid)
        except ProcessLookupError:
            init = -1
        if init >= 0:
            if self._life is not None:
                with contextlib.suppress(OSError):
                    self._life.close()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(init, signal.SIGTERM)
            if not _readable(init, within):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(init, signal.SIGKILL)
            ended = _readable(init, within)
            os.close(init)
            if not ended:
                raise GroundFailed(f"process {self.pid}, which holds the lab in {self.directory}, does not end")
        shutil.rmtree(self.directory, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove the directories in *directory* of labs that did not end as they should."""
    for place in directory.iterdir() if directory.exists() else ():
        if place.is_dir() and not _alive(place) and _begun_long_ago(place):
            shutil.rmtree(place, ignore_errors=True)


def _begun_long_ago(place: Path) -> bool:
    """Whether what lies there can't be a lab that is just being made."""
    return (place / "lock").exists()


def _alive(directory: Path) -> bool:
    """Whether process 1 of a lab holds the lock in *directory*."""
    try:
        with (directory / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _readable(descriptor: int, within: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within * 1000))


# --- run by this same file, inside --------------------------------------------------------------------------------

_SELF = [sys.executable, "-I", "-S", str(Path(__file__).absolute())]


def _become_init(keep: bool, directory: Path) -> None:
    # The machine's /proc is still mounted, and so names us by the machine's number.
    outer_pid = str(Path("/proc/self").readlink())
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _wakened() as (waker, ended):
            print(outer_pid, flush=True)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            if keep:
                os.dup2(null, 2)
            _live(waker, ended, () if keep else (0,))
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _wakened() -> Iterator[tuple[socket.socket, list[int]]]:
    """A socket that can be read from when a signal has come, and the list of those that say we are to end."""
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    ended: list[int] = []
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C is for our maker, who then ends us
        signal.signal(number, signal.SIG_IGN)
    yield waker, ended
    signal.set_wakeup_fd(-1)


def _live(waker: socket.socket, ended: list[int], life: tuple[int, ...]) -> None:
    poll = select.poll()
    for descriptor in (waker.fileno(), *life):
        poll.register(descriptor, select.POLLIN)
    while not ended:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ready & set(life):
            return  # nothing is ever written: our maker has ended
        with contextlib.suppress(BlockingIOError):
            waker.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    _become_init(sys.argv[1] == "keep", Path(sys.argv[2]))
