"""A private libvirtd with its virtlogd, and what is started beside them, in namespaces of its own.

    with LibvirtHost(Path("/some/directory"), "n1") as host:
        host.run(["virsh", "list", "--all"])

The host is a process, mount, UTS and (unless told otherwise) network namespace of this machine: /run, /var/lib/libvirt,
/etc/libvirt, /var/cache/libvirt and /var/log/libvirt are directories below the one given, /etc/hosts names the host,
everything else is the machine's. It needs root, and neither systemd nor D-Bus.

Whatever runs inside ends when the host is closed *or* when the process that made it ends, even by SIGKILL: process 1
of the namespace ends as soon as nobody holds the other end of its standard input, and the kernel ends the rest.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

LIBVIRT_URI = "qemu:///system"
# Directory of the machine -> directory of the host that stands in its place.
_PRIVATE = {
    "/run": "run",
    "/var/lib/libvirt": "lib",
    "/etc/libvirt": "etc",
    "/var/cache/libvirt": "cache",
    "/var/log/libvirt": "log",
}
# Privileges are dropped by nobody here: there is no libvirt-qemu user to own the test's directories, no
# cgroup that is ours, and no udev in the namespace to fill a private /dev.
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
migration_address = "0.0.0.0"
"""
_LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
_VIRTLOGD_CONF = 'log_outputs = "3:file:/var/log/libvirt/virtlogd.log"\n'


class HostFailed(Exception):
    """The host, or something in it, did not start or stop as it should."""


class Inside(subprocess.Popen[Any]):
    """A process in the host; signals reach the process itself, and not what carried it into the namespaces."""

    inner_pid: int = 0
    outer_pid: int = 0

    def send_signal(self, sig: int) -> None:
        self.poll()
        if self.returncode is None:
            try:
                os.kill(self.outer_pid, sig)
            except ProcessLookupError:
                pass


class LibvirtHost:
    """One machine as far as libvirt can tell: started by ``start`` (or ``with``), gone after ``close``."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        own_network: bool = True,
        capabilities: Path | None = None,
        deadline: float = 60.0,
    ) -> None:
        """*capabilities* is a directory in which several hosts may share what libvirtd found out about QEMU
        (the probing takes seconds); *deadline* is for each start and stop of a daemon."""
        self.directory = directory.absolute()
        self.name = name
        self.uri = LIBVIRT_URI
        self._own_network = own_network
        self._capabilities = capabilities
        self._deadline = deadline
        self._init: subprocess.Popen[bytes] | None = None
        self._init_pid = 0

    def __enter__(self) -> LibvirtHost:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the host ---------------------------------------------------------------------------------------------

    def start(self, *, libvirt: bool = True) -> None:
        """Make the namespaces and start virtlogd and libvirtd; what was begun is ended again if that fails.

        Without *libvirt* neither is started.
        """
        if self._init is not None:
            raise HostFailed(f"host {self.name} runs already")
        self._write_files()
        try:
            self._start_init()
            if libvirt:
                self._start_daemon("virtlogd")
                self.start_libvirtd()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process in the host; its mounts and its network go with the last of them."""
        init, self._init = self._init, None
        if init is None:
            return
        assert init.stdin is not None and init.stdout is not None
        init.stdin.close()
        try:
            init.wait(self._deadline)
        except subprocess.TimeoutExpired:
            init.kill()  # unshare takes process 1 with it
            init.wait()
        init.stdout.close()

    def _write_files(self) -> None:
        for part in (*_PRIVATE.values(), "run/lock", "run/libvirt", "etc/qemu/networks", "lib/images"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        if self._capabilities is not None:
            self._capabilities.mkdir(parents=True, exist_ok=True)
            (self.directory / "cache/qemu/capabilities").mkdir(parents=True, exist_ok=True)
        etc = self.directory / "etc"
        (etc / "qemu.conf").write_text(_QEMU_CONF)
        (etc / "virtlogd.conf").write_text(_VIRTLOGD_CONF)
        identity = self.directory / "host_uuid"
        if not identity.exists():
            identity.write_text(str(uuid.uuid4()))
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=identity.read_text()))
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost\n")

    def _start_init(self) -> None:
        mounts = [f"{self.directory / part}={target}" for target, part in _PRIVATE.items()]
        mounts.append(f"{self.directory / 'hosts'}=/etc/hosts")
        if self._capabilities is not None:
            mounts.append(f"{self._capabilities.absolute()}=/var/cache/libvirt/qemu/capabilities")
        argv = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        if self._own_network:
            argv.append("--net")
        argv += ["--", *_SELF, "init", self.name, "net" if self._own_network else "-", *mounts]
        self._init = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        assert self._init.stdout is not None
        answer = self._init.stdout.readline() if _readable(self._init.stdout.fileno(), self._deadline) else b""
        if not answer.strip().isdigit():
            raise HostFailed(f"host {self.name}: the namespaces could not be made")
        self._init_pid = int(answer)

    # --- what runs in it --------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process 1 of the host, as this machine numbers it (``ip link set X netns PID``)."""
        if self._init is None:
            raise HostFailed(f"host {self.name} does not run")
        return self._init_pid

    def popen(self, argv: Sequence[str], **kwargs: Any) -> Inside:
        """Start *argv* in the host; arguments as for ``subprocess.Popen``, *cwd* being ``/`` unless it is given."""
        receiver, sender = os.pipe()
        cwd = str(kwargs.pop("cwd", "/"))
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--pid", "--net", "--wdns=" + cwd, "--"]
        try:
            process = Inside(
                [*enter, *_SELF, "exec", str(sender), *argv],
                pass_fds=(sender, *kwargs.pop("pass_fds", ())),
                **kwargs,
            )
        except BaseException:
            os.close(receiver)
            raise
        finally:
            os.close(sender)
        with os.fdopen(receiver, "rb") as reports:
            report = reports.readline() if _readable(receiver, self._deadline) else b""
        if report:
            process.inner_pid = int(report)
            process.outer_pid = self._outer(process.inner_pid) or process.pid
        else:
            process.outer_pid = process.pid
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the host to its end, and give what it said; HostFailed if it failed and *check* is set."""
        process = self.popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise HostFailed(f"{' '.join(argv)}: status {process.returncode}: {errors or output}")
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def virsh(self, *argv: str, check: bool = True) -> str:
        """What ``virsh`` of these arguments prints."""
        return self.run(["virsh", "--connect", self.uri, *argv], check=check).stdout

    def path(self, inside: str) -> Path:
        """Where a file that the host knows as *inside* is for this machine."""
        for target, part in _PRIVATE.items():
            if inside == target or inside.startswith(target + "/"):
                return self.directory / part / inside[len(target) :].lstrip("/")
        return Path(inside)

    # --- libvirtd ---------------------------------------------------------------------------------------------

    def start_libvirtd(self) -> None:
        """Start libvirtd and return when it takes connections."""
        self._start_daemon("libvirtd")

    def stop_libvirtd(self) -> None:
        """End libvirtd as a service manager would (SIGTERM), and wait for its end; guests run on."""
        self._end_daemon("libvirtd", signal.SIGTERM)

    def kill_libvirtd(self) -> None:
        """End libvirtd by SIGKILL, and wait for its end; guests run on."""
        self._end_daemon("libvirtd", signal.SIGKILL)

    def pause_libvirtd(self) -> None:
        """Stop libvirtd from answering (SIGSTOP), its sockets staying open; ``resume_libvirtd`` goes on."""
        os.kill(self.daemon_pid("libvirtd"), signal.SIGSTOP)

    def resume_libvirtd(self) -> None:
        """Let a paused libvirtd go on."""
        os.kill(self.daemon_pid("libvirtd"), signal.SIGCONT)

    def daemon_pid(self, program: str) -> int:
        """The process of *program* (libvirtd, virtlogd), as this machine numbers it; 0 if there is none."""
        file = self.directory / f"run/{program}.pid"
        try:
            return self._outer(int(file.read_text()))
        except (FileNotFoundError, ValueError):
            return 0

    def _start_daemon(self, program: str) -> None:
        # With --daemon, the program that was called ends when the one in the background listens on its socket.
        log = self.directory / f"log/{program}.start"
        with log.open("wb") as output:
            process = self.popen([program, "--daemon"], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            try:
                status: int | None = process.wait(self._deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = None
        if status != 0:
            what = "did not come up in time" if status is None else f"failed with status {status}"
            raise HostFailed(f"host {self.name}: {program} {what}: {log.read_text(errors='replace')}")

    def _end_daemon(self, program: str, number: signal.Signals) -> None:
        pid = self.daemon_pid(program)
        if not pid:
            return
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, number)
            if not _readable(descriptor, self._deadline):
                raise HostFailed(f"host {self.name}: {program} does not end")
        finally:
            os.close(descriptor)

    def _outer(self, inner_pid: int) -> int:
        """This machine's number of a process that the host numbers *inner_pid*; 0 if there is none."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                numbers = re.search(r"^NSpid:\s*\d+\s+(\d+)$", (entry / "status").read_text(), re.MULTILINE)
                if (
                    numbers is not None
                    and int(numbers.group(1)) == inner_pid
                    and (entry / "ns/pid").readlink() == namespace
                ):
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return 0


def _readable(descriptor: int, within: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within * 1000))


# --- run by this same file, inside --------------------------------------------------------------------------------

_SELF = [sys.executable, "-I", "-S", str(Path(__file__).absolute())]


def _become_init(name: str, network: str, mounts: Sequence[str]) -> None:
    # The machine's /proc is still mounted, and so names us by the machine's number.
    outer_pid = str(Path("/proc/self").readlink())
    socket.sethostname(name)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    if network == "net":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    for mount in mounts:
        source, target = mount.split("=", 1)
        subprocess.run(["mount", "--bind", source, target], check=True)
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # Ctrl-C is for our maker, who then closes us
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write(outer_pid + "\n")
    sys.stdout.flush()
    while True:
        if _ready(0, waker.fileno()) == 0:
            return  # nothing is ever written: our maker has ended or wants us to
        waker.recv(4096)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def _ready(first: int, second: int) -> int:
    poll = select.poll()
    for descriptor in (first, second):
        poll.register(descriptor, select.POLLIN)
    return min(descriptor for descriptor, _ in poll.poll())


def _become(report: int, argv: list[str]) -> None:
    os.write(report, b"%d\n" % os.getpid())
    os.set_inheritable(report, False)
    # Whoever started the tests in the background has had Ctrl-C ignored, and that would be handed on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    if sys.argv[1] == "init":
        _become_init(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        try:
            _become(int(sys.argv[2]), sys.argv[3:])
        except OSError as failure:
            sys.stderr.write(f"{sys.argv[3]}: {failure.strerror}\n")
            sys.exit(127)
