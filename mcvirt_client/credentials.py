"""The cache of session tokens: one file of its user, that nobody else may read."""

# Importing pathlib would cost several milliseconds at every start of the mcvirt command.
# ruff: noqa: PTH105, PTH108, PTH111, PTH118
from __future__ import annotations

import os
import stat

import msgspec

from mcvirt.errors import BadArgument, Failed


class TokenCache:
    """Tokens by daemon ("host:port"). The file is written whole or not at all, with mode 0600; it holds no password."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or os.path.join(os.path.expanduser("~"), ".mcvirt-auth")

    def get(self, key: str) -> str | None:
        """The token for *key*; raises BadArgument if the file is not safe or not ours."""
        entry = self._read().get(key)
        return entry if isinstance(entry, str) else None

    def put(self, key: str, token: str) -> None:
        """Keep *token* for *key*."""
        entries = self._read()
        entries[key] = token
        self._write(entries)

    def drop(self, key: str) -> bool:
        """Forget the token for *key*; returns whether there was one."""
        entries = self._read()
        if entries.pop(key, None) is None:
            return False
        self._write(entries)
        return True

    def _read(self) -> dict[str, str]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BadArgument(what=self.path, why=f"it can't be read ({error.strerror}). Delete it.") from None
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                raise BadArgument(what=self.path, why="it is not a file of yours, so it is not used. Delete it.")
            if info.st_mode & 0o077:
                raise BadArgument(
                    what=self.path,
                    why="others may read it, so the sessions in it are not used. "
                    "Delete it, and end those sessions with `mcvirt session revoke`.",
                )
            data = file.read(1_000_000)
        try:
            return msgspec.json.decode(data, type=dict[str, str])
        except msgspec.DecodeError:
            # Earlier releases kept two plain lines here, user and session, of which nothing is valid any more.
            return {}

    def _write(self, entries: dict[str, str]) -> None:
        temporary = f"{self.path}.{os.getpid()}.tmp"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    os.fchmod(fd, 0o600)  # the umask may have taken the owner's own rights away
                    file.write(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
                    file.flush()
                    os.fsync(fd)
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise Failed(text=f"The session could not be kept in {self.path}: {error.strerror}.") from None
