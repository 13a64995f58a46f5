"""Storage backends, hard drives and ISO images."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import NodeArgument, Owner, OwnerOfDisk, OwnerOrBackend, Vm, VmOfDisk, remote
from mcvirt.types.storage import BackendInfo, BackendSpec, DiskInfo, IsoInfo, UploadInfo
from mcvirt.types.vm import DiskDriver, DiskSpec


class StorageApi:
    """Where the disks of virtual machines are kept."""

    object_id = "storage"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[BackendInfo, ...]:
        """All storage backends, by name."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_STORAGE_BACKEND, task=True)
    def create(self, spec: BackendSpec) -> BackendInfo:
        """Create a storage backend on the nodes named; each location must exist and is marked as the backend's."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_STORAGE_BACKEND, task=True)
    def delete(self, name: str) -> None:
        """Delete a storage backend that no hard drive uses. The location itself stays."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_STORAGE_BACKEND, task=True)
    def add_nodes(self, name: str, nodes: dict[str, str]) -> BackendInfo:
        """Make a backend available on more nodes; *nodes* maps node to location, "" = the default location."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_STORAGE_BACKEND, task=True)
    def remove_nodes(self, name: str, nodes: tuple[str, ...]) -> BackendInfo:
        """Take nodes away from a backend; refused while a hard drive there needs it."""
        raise NotImplementedError


class HardDriveApi:
    """Hard drives: objects of their own, attached to one virtual machine or to none."""

    object_id = "hard_drive"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[DiskInfo, ...]:
        """All hard drives."""
        raise NotImplementedError

    @remote(
        needs=Permission.MODIFY_HARD_DRIVE,
        on=Vm("vm"),
        also={"vm": Permission.MODIFY_VM},
        runs_at=OwnerOrBackend("vm", "spec.backend"),
        task=True,
    )
    def create(self, spec: DiskSpec, vm: str | None = None) -> DiskInfo:
        """Create a hard drive, and attach it to the virtual machine *vm* where one is named."""
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=Vm("vm"), runs_at=Owner("vm"), task=True)
    def attach(self, disk: str, vm: str) -> DiskInfo:
        """Attach a hard drive that no virtual machine has; at once where the guest is running."""
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=VmOfDisk("disk"), runs_at=OwnerOfDisk("disk"), task=True)
    def detach(self, disk: str) -> DiskInfo:
        """Detach a hard drive from its virtual machine. Its data stays."""
        raise NotImplementedError

    @remote(
        needs=Permission.MODIFY_HARD_DRIVE,
        on=Vm("vm"),
        also={"vm": Permission.MODIFY_VM},
        runs_at=OwnerOrBackend("vm", "backend"),
        task=True,
    )
    def import_volume(
        self, volume: str, backend: str, vm: str | None = None, driver: DiskDriver | None = None
    ) -> DiskInfo:
        """Adopt a volume that exists on *backend* (name or ID) and that nothing uses.

        It is looked for on the node of *vm*; without one, on the node that is called, or else on the one that has the
        backend.
        """
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_HARD_DRIVE, runs_at=OwnerOfDisk("disk"), task=True)
    def delete(self, disk: str, forget: bool = False) -> None:
        """Delete a detached hard drive and its data.

        *forget* is for one whose data is out of reach for good, and is refused for any other: it takes the hard drive
        off the list, and touches no storage.
        """
        raise NotImplementedError


class IsoApi:
    """ISO images, kept on each node for itself."""

    object_id = "iso"

    @remote(needs=Access.ANY_USER, runs_at=NodeArgument("node"), reads=True)
    def list(self, node: str | None = None) -> tuple[IsoInfo, ...]:
        """The images on *node*, or on the node that was asked."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"))
    def upload_begin(self, name: str, size: int, node: str | None = None) -> UploadInfo:
        """Begin to send an image of *size* bytes. An upload that is idle for ten minutes is dropped."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"), reads=True)
    def upload_piece(self, upload: str, offset: int, data: bytes, node: str | None = None) -> int:
        """Send the next piece, at *offset*; returns how many bytes are there now."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"))
    def upload_finish(self, upload: str, sha256: str, node: str | None = None) -> IsoInfo:
        """Put the image in place, if all bytes are there and their SHA-256 is *sha256* (hex)."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"))
    def upload_abort(self, upload: str, node: str | None = None) -> None:
        """Drop an upload."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"), task=True)
    def add_url(self, url: str, name: str | None = None, sha256: str | None = None, node: str | None = None) -> IsoInfo:
        """Download an image from an http or https address onto the node."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_ISO, runs_at=NodeArgument("node"), task=True)
    def delete(self, name: str, node: str | None = None) -> None:
        """Delete an image that is in no virtual machine's drive."""
        raise NotImplementedError
