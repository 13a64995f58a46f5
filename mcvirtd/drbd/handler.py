"""mcvirt-drbd-handler: what the kernel has DRBD run when something happens to a resource.

    mcvirt-drbd-handler EVENT SPOOL SOCKET

It writes the event down in the directory SPOOL and tells mcvirtd, which listens at SOCKET; when mcvirtd is away, the
event is there at its next start. Where it can't be written, mcvirtd is told that, and has it from here alone. For
`fence-peer` it asks mcvirtd whether the other side knows that its data is old now, and ends with what the kernel
expects. The kernel waits for this program: nothing but the standard library is imported, and every wait has an end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time

FAILED, OUTDATED, UNREACHABLE, PRIMARY = 1, 4, 5, 6
"""The other side's data could not be marked as old; it is; the other side does not answer; it is Primary, and so it is
this side's data that is old."""

ASK_WITHIN = 20.0
TELL_WITHIN = 2.0
_ENVIRONMENT = {"resource": "DRBD_RESOURCE", "minor": "DRBD_MINOR", "peer": "DRBD_PEER"}


def main(argv: list[str] | None = None) -> int:
    """The status to end with: for `fence-peer` one of those above, else 0."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 3:
        sys.stderr.write(__doc__ or "")
        return 2
    event, spool, place = words
    said = {"event": event, "at": time.time(), **{key: os.environ.get(name, "") for key, name in _ENVIRONMENT.items()}}
    try:
        keep(spool, said)
    except OSError as error:
        # The kernel, and who reads its log, can do no more about it than this.
        sys.stderr.write(f"mcvirt-drbd-handler: {event} of {said['resource']} is not kept: {error}\n")
        said["kept"] = False
    answer = tell(place, said, ASK_WITHIN if event == "fence-peer" else TELL_WITHIN)
    if event != "fence-peer":
        return 0
    return answer if answer in (FAILED, OUTDATED, UNREACHABLE, PRIMARY) else UNREACHABLE


def keep(spool: str, said: dict[str, object]) -> str:
    """Write the event down so that it survives a power failure, and return the path."""
    os.makedirs(spool, mode=0o700, exist_ok=True)  # noqa: PTH103 - pathlib takes a third of this program's time
    name = f"{time.time_ns():020d}-{os.getpid()}-{said['event']}.json"
    new, path = os.path.join(spool, "." + name), os.path.join(spool, name)  # noqa: PTH118
    try:
        _write(new, json.dumps(said).encode())
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)  # noqa: PTH108
        raise
    os.rename(new, path)  # noqa: PTH104
    directory = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return path


def _write(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tell(place: str, said: dict[str, object], within: float) -> int | None:
    """Tell mcvirtd, and return what it answers; None if it does not in time."""
    deadline = time.monotonic() + within
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
            line.settimeout(within)
            line.connect(place)
            line.sendall(json.dumps(said).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                line.settimeout(max(0.01, deadline - time.monotonic()))
                piece = line.recv(64)
                if not piece or len(answer) > 64:
                    return None
                answer += piece
            return int(answer)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main())
