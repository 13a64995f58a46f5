"""ISO images on this node: sent by clients, downloaded, listed and deleted."""

from __future__ import annotations

import contextlib
import hashlib
import secrets

from mcvirt import names
from mcvirt.api.storage import IsoApi
from mcvirt.errors import ChecksumWrong, Conflict, InUse, NotFound
from mcvirt.rpc.transport import UPLOAD_PIECE
from mcvirt.types.storage import IsoInfo, UploadInfo
from mcvirt.units import MIB, format_size
from mcvirtd.auth.caller import current_caller
from mcvirtd.host import files
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage import fetching
from mcvirtd.storage.fetching import Answer, Fetcher
from mcvirtd.storage.isos import MOST_BYTES, IsoFile, IsoLibrary, checked_digest
from mcvirtd.storage.uploads import Uploads
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal

DROP_PART = "iso.drop_part"
_LOOK_FOR_ROOM = 64 * MIB


class IsoService(IsoApi):
    """The images of *node*."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        node: str,
        library: IsoLibrary,
        uploads: Uploads,
        fetcher: Fetcher,
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._node = node
        self._library = library
        self._uploads = uploads
        self._fetcher = fetcher
        journal.register(DROP_PART, library.drop_part)

    def list(self, node: str | None = None) -> tuple[IsoInfo, ...]:
        self._require_here(node)
        return tuple(self._info(image) for image in self._library.list())

    def upload_begin(self, name: str, size: int, node: str | None = None) -> UploadInfo:
        self._require_here(node)
        return UploadInfo(id=self._uploads.begin(name, size, current_caller().user), piece=UPLOAD_PIECE)

    def upload_piece(self, upload: str, offset: int, data: bytes, node: str | None = None) -> int:
        self._require_here(node)
        return self._uploads.piece(upload, offset, data, current_caller().user)

    def upload_finish(self, upload: str, sha256: str, node: str | None = None) -> IsoInfo:
        self._require_here(node)
        return self._info(self._uploads.finish(upload, sha256, current_caller().user))

    def upload_abort(self, upload: str, node: str | None = None) -> None:
        self._require_here(node)
        self._uploads.abort(upload, current_caller().user)

    def add_url(self, url: str, name: str | None = None, sha256: str | None = None, node: str | None = None) -> IsoInfo:
        self._require_here(node)
        reasons = Reasons()
        expected = None
        with reasons.gather():
            expected = None if sha256 is None else checked_digest(sha256)
        with reasons.gather():
            parts = fetching.checked_url(url)
            target = names.iso_name(name if name is not None else fetching.name_in(parts))
            self._library.refuse_existing(target)
        reasons.raise_all()
        with self._locks.hold(f"iso:{target}"), self._journal.transaction() as tx:
            self._library.refuse_existing(target)
            part = f".download-{secrets.token_hex(8)}"
            tx.undo(DROP_PART, part=part)
            with contextlib.ExitStack() as stack:
                with step(f"Asking {parts.hostname}"):
                    answer = stack.enter_context(self._fetcher.open(parts, current_task()))
                found = self._receive(answer, part, target)
            if expected is not None and found != expected:
                raise ChecksumWrong(name=target, found=found, expected=expected)
            with step("Storing it"):
                image = self._library.publish(part, target, found)
            tx.keep()
        return self._info(image)

    def _receive(self, answer: Answer, part: str, name: str) -> str:
        """Write all that comes into the part; returns its SHA-256."""
        digest, done, room = hashlib.sha256(), 0, self._library.room()
        self._refuse_too_much(answer.length or 0, room, name)
        with (
            step(f"Downloading {name}", total=answer.length, unit="B") as progress,
            self._library.new_part(part) as descriptor,
        ):
            for chunk in answer.chunks():
                if done // _LOOK_FOR_ROOM != (done + len(chunk)) // _LOOK_FOR_ROOM:
                    room = done + self._library.room()
                self._refuse_too_much(done + len(chunk), room, name)
                files.write_all(descriptor, chunk)
                digest.update(chunk)
                done += len(chunk)
                progress.at(done)
        return digest.hexdigest()

    def _refuse_too_much(self, size: int, room: int, name: str) -> None:
        if size > MOST_BYTES:
            limit = format_size(MOST_BYTES)
            raise Conflict(text=f"'{name}' is larger than {limit}, the most that an image may have.")
        if size > room:
            raise Conflict(text=f"'{name}' does not fit: images can take {format_size(room)} more on '{self._node}'.")

    def delete(self, name: str, node: str | None = None) -> None:
        self._require_here(node)
        name = names.iso_name(name)
        with self._locks.hold(f"iso:{name}"):
            self._library.find(name)
            users = self._users(name)
            if users:
                machines = ", ".join(f"virtual machine '{user}'" for user in users)
                raise InUse(
                    kind="ISO image",
                    name=name,
                    users=machines,
                    hint="Eject it there first.",
                )
            with step(f"Deleting {name}"):
                self._library.delete(name)

    def _users(self, name: str) -> tuple[str, ...]:
        # A machine that is registered elsewhere has that node's image.
        vms = self._store.all(VmRecord).values()
        return tuple(sorted(vm.name for vm in vms if vm.iso == name and vm.node in (None, self._node)))

    def _info(self, image: IsoFile) -> IsoInfo:
        return IsoInfo(
            name=image.name, size=image.size, sha256=image.sha256, node=self._node, used_by=self._users(image.name)
        )

    def _require_here(self, node: str | None) -> None:
        if node not in (None, "", self._node):
            raise NotFound(kind="node", name=names.printable(str(node)), hint=" `mcvirt info` shows all of them.")
