"""Sending ISO images to a node."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mcvirt.errors import BadArgument, Failed, McvirtError
from mcvirt.types.storage import IsoInfo

if TYPE_CHECKING:
    from mcvirt_client.client import Client


def upload_iso(
    client: Client,
    path: str,
    name: str | None = None,
    node: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IsoInfo:
    """Send the file *path* to *node* (the one that the client is connected to) as an ISO image called *name*.

    *progress* is called with the bytes that were sent and the size. What fails or is interrupted leaves nothing on
    the node. Raises BadArgument if the file can't be read, Failed if it changes while it is sent.
    """
    try:
        # Looked at before it is opened, because opening a pipe would wait for who writes to it.
        ordinary = stat.S_ISREG(Path(path).stat().st_mode)
        file = Path(path if ordinary else os.devnull).open("rb")  # noqa: SIM115 - the with below has it
    except OSError as error:
        raise BadArgument(what=f"file '{path}'", why=f"it can't be read ({error.strerror}).") from None
    with file:
        if not ordinary:
            raise BadArgument(what=f"file '{path}'", why="it is not an ordinary file.")
        size = os.fstat(file.fileno()).st_size
        upload = client.isos.upload_begin(name or Path(path).name, size, node)
        digest = hashlib.sha256()
        sent = 0
        try:
            while piece := file.read(max(1, upload.piece)):
                digest.update(piece)
                client.isos.upload_piece(upload.id, sent, piece, node)
                sent += len(piece)
                if progress is not None:
                    progress(sent, size)
            if sent != size:
                raise Failed(text=f"File '{path}' changed while it was sent. Nothing was kept of it.")
            return client.isos.upload_finish(upload.id, digest.hexdigest(), node)
        except OSError as error:
            _abort(client, upload.id, node)
            raise Failed(text=f"File '{path}' could not be read to its end ({error.strerror}).") from None
        except BaseException:
            _abort(client, upload.id, node)
            raise


def _abort(client: Client, upload: str, node: str | None) -> None:
    try:
        client.isos.upload_abort(upload, node)
    except McvirtError:
        pass  # an upload that is idle is dropped by the daemon, and why it failed matters more
