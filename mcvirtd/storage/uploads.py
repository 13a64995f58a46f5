"""ISO images that clients are sending, piece by piece."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable
from typing import NoReturn

from mcvirt import names
from mcvirt.errors import BadArgument, ChecksumWrong, Conflict, McvirtError, NotFound
from mcvirt.rpc.transport import UPLOAD_PIECE
from mcvirt.units import MIB, format_size
from mcvirtd.host import files
from mcvirtd.storage.isos import MOST_BYTES, IsoFile, IsoLibrary, checked_digest

log = logging.getLogger(__name__)
MOST = 16
MOST_OF_USER = 4
IDLE = 600.0
_FLUSH = 64 * MIB
"""How much is written before it is brought to the disk, so that the end of an upload does not wait for all of it."""


class _Upload:
    def __init__(self, name: str, size: int, user: str) -> None:
        self.id = secrets.token_hex(8)
        self.part = f".upload-{self.id}"
        self.name = name
        self.size = size
        self.user = user
        self.received = 0
        self.digest = hashlib.sha256()
        self.touched = 0.0
        self.open = True
        self.lock = threading.Lock()


class Uploads:
    """All uploads of this node. *clock* counts seconds; who sends nothing for *idle* of them is forgotten."""

    def __init__(self, library: IsoLibrary, *, clock: Callable[[], float], idle: float = IDLE) -> None:
        self._library = library
        self._clock = clock
        self._idle = idle
        self._changed = threading.Condition()
        self._uploads: dict[str, _Upload] = {}
        self._closed = False
        self._reaper: threading.Thread | None = None

    def begin(self, name: str, size: int, user: str) -> str:
        """Begin an upload of *user*'s; returns its ID."""
        name = names.iso_name(name)
        if not 1 <= size <= MOST_BYTES:
            raise BadArgument(
                what="size of the image", why=f"{size} bytes is not between 1 and {format_size(MOST_BYTES)}."
            )
        self._library.refuse_existing(name)
        room = self._library.room()
        with self._changed:
            if self._closed:
                raise Conflict(text="mcvirtd is about to end. Try again in a moment.")
            self._refuse_more(name, user)
            promised = sum(each.size - each.received for each in self._uploads.values())
            if promised + size > room:
                left = format_size(max(0, room - promised))
                raise Conflict(text=f"'{name}' does not fit: images can take {left} more on this node.")
            upload = _Upload(name, size, user)
            with self._library.new_part(upload.part):
                upload.touched = self._clock()
                self._uploads[upload.id] = upload
            self._start_reaper()
            self._changed.notify_all()
        return upload.id

    def _refuse_more(self, name: str, user: str) -> None:
        others = self._uploads.values()
        if any(each.name == name for each in others):
            raise Conflict(text=f"ISO image '{name}' is being uploaded already.")
        if sum(each.user == user for each in others) >= MOST_OF_USER:
            raise Conflict(text=f"You have {MOST_OF_USER} uploads open, the most that one user can. Finish one first.")
        if len(others) >= MOST:
            raise Conflict(text=f"There are {MOST} uploads open, the most that a node takes. Try again later.")

    def piece(self, upload_id: str, offset: int, data: bytes, user: str) -> int:
        """Take the bytes at *offset*, which is where the last piece ended; returns how many are there now."""
        if len(data) > UPLOAD_PIECE:
            raise BadArgument(what="piece", why=f"it has {len(data)} bytes, and {UPLOAD_PIECE} is the most.")
        upload = self._find(upload_id, user)
        with upload.lock:
            self._still_open(upload)
            if offset != upload.received:
                raise Conflict(
                    text=f"The next piece of '{upload.name}' begins at {upload.received}, not at {offset}.",
                    received=upload.received,
                )
            if offset + len(data) > upload.size:
                raise BadArgument(what="piece", why=f"it goes beyond the {upload.size} bytes that were announced.")
            part = self._library.part(upload.part)
            with files.told("write to", part), files.opened(part, os.O_WRONLY) as descriptor:
                os.lseek(descriptor, offset, os.SEEK_SET)
                files.write_all(descriptor, data)
                if offset // _FLUSH != (offset + len(data)) // _FLUSH:
                    os.fdatasync(descriptor)
            upload.digest.update(data)
            upload.received += len(data)
            upload.touched = self._clock()
            return upload.received

    def finish(self, upload_id: str, sha256: str, user: str) -> IsoFile:
        """Make it an image; ChecksumWrong, and the upload is gone, if it is not what its digest says."""
        expected = checked_digest(sha256)
        upload = self._find(upload_id, user)
        with upload.lock:
            self._still_open(upload)
            if upload.received != upload.size:
                raise Conflict(
                    text=f"Of '{upload.name}' only {upload.received} of {upload.size} bytes have arrived.",
                    received=upload.received,
                )
            found = upload.digest.hexdigest()
            if found != expected:
                self._drop(upload)
                raise ChecksumWrong(name=upload.name, found=found, expected=expected)
            image = self._library.publish(upload.part, upload.name, found)
            self._drop(upload)
            return image

    def abort(self, upload_id: str, user: str) -> None:
        """Drop an upload."""
        upload = self._find(upload_id, user)
        with upload.lock:
            self._drop(upload)

    def drop_idle(self) -> None:
        """Drop the uploads that were idle for too long."""
        with self._changed:
            late = [each for each in self._uploads.values() if self._clock() - each.touched >= self._idle]
        for upload in late:
            # One that is being written to at this moment is not idle.
            if upload.lock.acquire(blocking=False):
                try:
                    if self._clock() - upload.touched >= self._idle:
                        log.info("upload %s of %s by %s was idle and is dropped", upload.id, upload.name, upload.user)
                        self._drop(upload)
                finally:
                    upload.lock.release()

    def close(self) -> None:
        """Drop all uploads and take no more."""
        with self._changed:
            self._closed = True
            left = list(self._uploads.values())
            self._changed.notify_all()
        for upload in left:
            with upload.lock:
                self._drop(upload)
        if self._reaper is not None:
            self._reaper.join()

    def _find(self, upload_id: str, user: str) -> _Upload:
        with self._changed:
            upload = self._uploads.get(upload_id)
        # Of others' uploads nobody learns that they exist.
        if upload is None or upload.user != user:
            _not_found(upload_id)
        return upload

    @staticmethod
    def _still_open(upload: _Upload) -> None:
        if not upload.open:
            _not_found(upload.id)

    def _drop(self, upload: _Upload) -> None:
        upload.open = False
        with self._changed:
            self._uploads.pop(upload.id, None)
        try:
            self._library.drop_part(upload.part)
        except McvirtError as error:
            log.warning("what there is of upload %s is left until the next start: %s", upload.id, error)

    def _start_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = threading.Thread(target=self._reap, name="uploads", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                oldest = min((each.touched for each in self._uploads.values()), default=None)
                wait = None if oldest is None else max(0.1, oldest + self._idle - self._clock())
                self._changed.wait(wait)
            with contextlib.suppress(McvirtError):
                self.drop_idle()


def _not_found(upload_id: str) -> NoReturn:
    raise NotFound(
        kind="upload",
        name=names.printable(upload_id),
        hint=" One that is idle for ten minutes is dropped; begin again.",
    )
