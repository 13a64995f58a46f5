"""Programs are run to their end, to their deadline, or to their cancel."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from pathlib import Path

import pytest

from mcvirt.errors import CommandFailed, DeadlinePassed, ProgramMissing, TaskCancelled
from mcvirtd.host import run as module
from mcvirtd.host.run import run, short, stream


def sh(script: str, within: float = 20, **options: object) -> module.Output:
    return run(["/bin/sh", "-c", script], within=within, **options)  # type: ignore[arg-type]


def gone(pid: int, within: float = 5) -> bool:
    """Whether the process ended (it is looked at until it has: it is no child of ours)."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select

    ended, _, _ = select.select([watched], [], [], within)
    os.close(watched)
    return bool(ended)


def test_output_and_status_are_returned() -> None:
    output = sh("echo out; echo err >&2; exit 3", ok_statuses=(0, 3))
    assert (output.stdout, output.stderr, output.status) == ("out\n", "err\n", 3)


def test_arguments_are_not_looked_at_by_a_shell() -> None:
    assert run(["printf", "%s|", "$HOME", "a b", "`id`"], within=5).stdout == "$HOME|a b|`id`|"


def test_failure_names_program_status_and_what_it_said() -> None:
    with pytest.raises(CommandFailed, match=r"^sh failed with status 5: it broke badly$"):
        sh("echo ignored; echo 'it broke' >&2; echo badly >&2; exit 5")


def test_message_falls_back_to_stdout_and_is_kept_short_and_printable() -> None:
    with pytest.raises(CommandFailed, match="said here"):
        sh("echo said here; exit 1")
    with pytest.raises(CommandFailed) as caught:
        sh("printf '\\033[31mred\\007'; head -c 100000 /dev/zero | tr '\\0' x; exit 1")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(ProgramMissing, match=r"The program lvcreate-of-nowhere is not installed on this node\.$"):
        run(["lvcreate-of-nowhere"], within=1)
    assert "Debian package lvm2" in str(module.missing("lvcreate"))


def test_program_that_cannot_be_run_fails(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(CommandFailed, match=r"text failed with status 126: Permission denied\."):
        run([str(tmp_path / "text")], within=1)


def test_input_is_given_whole_while_output_comes_back() -> None:
    data = bytes(range(256)) * 4096
    output = run(["base64", "-w0"], within=20, input=data)
    import base64

    assert base64.b64decode(output.stdout) == data


def test_program_that_wants_no_input_is_fine() -> None:
    assert run(["true"], within=20, input=b"x" * 10**6).status == 0


def test_without_input_stdin_is_empty() -> None:
    assert run(["cat"], within=5).stdout == ""


def test_environment_is_ours_not_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    assert set(run(["env"], within=5).stdout.split()) == {f"{k}={v}" for k, v in module.ENVIRONMENT.items()}


def test_deadline_ends_the_program_and_what_it_started() -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed, match=r"^the end of sh did not happen within 0\.5 s"):
        sh("sleep 100 & echo $! > /tmp/mcvirt-test-$PPID; wait", within=0.5)
    pid = int(Path(f"/tmp/mcvirt-test-{os.getpid()}").read_text())
    Path(f"/tmp/mcvirt-test-{os.getpid()}").unlink()
    assert gone(pid)
    assert time.monotonic() - begun < 5


def test_program_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed):
        sh("trap '' TERM; while :; do sleep 1; done", within=0.5)
    assert time.monotonic() - begun < 5


def test_cancel_ends_the_program_at_once() -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.2, cancel.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(TaskCancelled):
        sh("sleep 100", within=50, cancel=cancel)
    assert time.monotonic() - begun < 3


def test_process_left_behind_does_not_hold_us() -> None:
    begun = time.monotonic()
    output = sh("echo done; setsid sleep 3 & exit 0", within=20)
    assert output.stdout == "done\n"
    assert time.monotonic() - begun < 2


def test_endless_output_is_refused_and_endless_messages_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OUTPUT", 100_000)
    with pytest.raises(CommandFailed, match="printed more than 100000 bytes"):
        run(["yes"], within=20)
    output = sh("head -c 10000000 /dev/zero >&2; echo whole")
    assert (output.stdout, len(output.stderr)) == ("whole\n", module.MOST_MESSAGES)


def test_killed_program_has_a_negative_status() -> None:
    with pytest.raises(CommandFailed, match=f"status -{int(signal.SIGKILL)}"):
        sh("kill -9 $$")


def test_no_descriptor_and_no_child_is_left() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    run(["true"], within=5)
    before = descriptors()
    for argv, within in ((["true"], 5.0), (["false"], 5.0), (["sleep", "9"], 0.05), (["no-such-program"], 1.0)):
        try:
            run(argv, within=within, input=b"x")
        except (CommandFailed, DeadlinePassed):
            continue
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_arguments_are_logged_for_debugging_and_input_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=module.__name__):
        run(["cat", "/dev/null"], within=5, input=b"secret")
    assert "/dev/null" in caplog.text
    assert "secret" not in caplog.text


def test_short_keeps_the_end() -> None:
    assert short("a\n\tb\x00c") == "a b c"
    assert short("x" * 600 + "end", 20) == "..." + "x" * 14 + "end"


def test_a_stream_is_heard_line_by_line_until_it_is_stopped() -> None:
    heard: queue.Queue[str] = queue.Queue()
    stop = threading.Event()
    ended: list[int] = []
    script = "echo one; printf tw; printf 'o\\n'; exec sleep 1000"
    thread = threading.Thread(target=lambda: ended.append(stream(["sh", "-c", script], heard.put, stop)))
    thread.start()
    assert [heard.get(timeout=10), heard.get(timeout=10)] == ["one", "two"]
    assert thread.is_alive()
    stop.set()
    thread.join(10)
    assert ended == [-15]


def test_a_stream_that_ends_is_heard_to_its_end() -> None:
    heard: list[str] = []
    script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; echo why >&2; exit 3"
    assert stream(["sh", "-c", script], heard.append, threading.Event()) == 3
    assert heard == [str(number) for number in range(20000)]


def test_a_stream_without_lines_is_ended() -> None:
    with pytest.raises(CommandFailed, match="a line has more than"):
        stream(["sh", "-c", "exec tr '\\0' x < /dev/zero"], lambda line: None, threading.Event())
    with pytest.raises(ProgramMissing):
        stream(["no-such-program-here"], lambda line: None, threading.Event())
