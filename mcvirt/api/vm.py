"""Virtual machines."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import AmongNodes, Owner, Vm, remote
from mcvirt.types.vm import ConsoleChunk, LockState, VmChange, VmInfo, VmRow, VmSpec, VncInfo


class VmApi:
    """Create, change, run and delete virtual machines."""

    object_id = "vm"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[VmRow, ...]:
        """All virtual machines of the cluster, by name."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def names(self) -> tuple[str, ...]:
        """The names of all virtual machines, sorted."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, on=Vm("name"), runs_at=Owner("name"), reads=True, known_here=True)
    def info(self, name: str) -> VmInfo:
        """Everything about one virtual machine."""
        raise NotImplementedError

    @remote(
        needs=Permission.CREATE_VM,
        also={"spec.disks": Permission.MODIFY_HARD_DRIVE, "spec.networks": Permission.MODIFY_VM},
        runs_at=AmongNodes("spec.nodes"),
        task=True,
    )
    def create(self, spec: VmSpec) -> VmInfo:
        """Create a virtual machine and register it on the node that is called, or the first named if that is not.

        The order is: the record, then each disk, then each network adapter, then the domain in libvirt. When a step
        after the first fails the machine stays, visible and repairable (VmIncomplete says what is missing), and the
        step itself leaves nothing behind. What can be known to fail beforehand is refused with all reasons.
        """
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=Vm("name"), runs_at=Owner("name"), task=True)
    def delete(self, name: str, keep_disks: bool = False, keep_config: bool = False) -> None:
        """Delete a stopped virtual machine with its disks.

        *keep_disks* detaches the disks and leaves them as hard drives of their own. *keep_config* deletes the disks
        and the domain, and keeps the machine's record, unregistered.
        """
        raise NotImplementedError

    @remote(
        needs=Permission.CHANGE_VM_POWER_STATE,
        on=Vm("name"),
        also={"iso": Permission.MODIFY_VM},
        runs_at=Owner("name"),
        task=True,
    )
    def start(self, name: str, iso: str | None = None) -> None:
        """Start a virtual machine; with *iso*, from that image instead of its first disk.

        Without *iso* an image that is still in the drive is taken out and the machine boots from its disk.
        """
        raise NotImplementedError

    @remote(needs=Permission.CHANGE_VM_POWER_STATE, on=Vm("name"), runs_at=Owner("name"), task=True)
    def stop(self, name: str) -> None:
        """Turn a virtual machine off at once, as by pulling the plug."""
        raise NotImplementedError

    @remote(needs=Permission.CHANGE_VM_POWER_STATE, on=Vm("name"), runs_at=Owner("name"), task=True)
    def reset(self, name: str) -> None:
        """Press the reset button of a running virtual machine."""
        raise NotImplementedError

    @remote(needs=Permission.CHANGE_VM_POWER_STATE, on=Vm("name"), runs_at=Owner("name"), task=True)
    def shutdown(self, name: str, wait: int | None = None) -> None:
        """Press the power button of a running virtual machine.

        With *wait* (seconds) return once it is off, or raise DeadlinePassed; otherwise return at once.
        """
        raise NotImplementedError

    @remote(needs=Permission.SET_VM_NODE, on=Vm("name"), task=True)
    def register(self, name: str) -> None:
        """Make this node the one that runs the virtual machine, and define it in libvirt."""
        raise NotImplementedError

    @remote(needs=Permission.SET_VM_NODE, on=Vm("name"), runs_at=Owner("name"), task=True)
    def unregister(self, name: str) -> None:
        """Take a stopped virtual machine out of libvirt; its record and its disks stay."""
        raise NotImplementedError

    @remote(
        needs=Permission.SET_VM_NODE,
        on=Vm("name"),
        also={"start": Permission.CHANGE_VM_POWER_STATE},
        task=True,
    )
    def failover(self, name: str, owner_is_off: str | None = None, start: bool = False) -> VmInfo:
        """Take over, on the node that is called, a virtual machine whose own node is gone; with *start*, start it.

        *owner_is_off* names that node: the operator's word that it is off, without which nothing is done. Refused
        while any node reaches it, and where a disk of the machine can't be had without it. When it is back, it gives
        up what it has of the machine.
        """
        raise NotImplementedError

    @remote(
        needs=Permission.MODIFY_VM,
        on=Vm("name"),
        also={
            "change.add_disks": Permission.MODIFY_HARD_DRIVE,
            "change.delete_disk": Permission.MODIFY_HARD_DRIVE,
            "change.grow_disk": Permission.MODIFY_HARD_DRIVE,
        },
        runs_at=Owner("name"),
        task=True,
    )
    def update(self, name: str, change: VmChange) -> VmInfo:
        """Change what is named and nothing else.

        Everything is checked first and refused together. Memory, processors, flags and the graphics driver take
        effect at the next start; disks, adapters and the ISO at once where the guest is running.
        """
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, on=Vm("name"), reads=True)
    def lock_state(self, name: str) -> LockState:
        """Whether the virtual machine is locked."""
        raise NotImplementedError

    @remote(needs=Permission.SET_VM_LOCK, on=Vm("name"))
    def set_lock(self, name: str, locked: bool) -> None:
        """Lock or unlock a virtual machine; refused if it is so already."""
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def vnc(self, name: str) -> VncInfo:
        """How to reach the VNC display of a running virtual machine, password included."""
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def console_log(self, name: str, tail: int = 65536) -> ConsoleChunk:
        """The last *tail* bytes (1 MiB at most) that the guest wrote to its serial console since its start."""
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"))
    def console_open(self, name: str) -> str:
        """Open the serial console of a running virtual machine; returns an ID for the calls below.

        A console that somebody else has open is taken over from them.
        """
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def console_read(self, name: str, console: str, wait: float = 10.0) -> ConsoleChunk:
        """What the guest has written; waits up to *wait* seconds (30 at most) for the first byte."""
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def console_write(self, name: str, console: str, data: bytes) -> None:
        """Type *data* on the serial console."""
        raise NotImplementedError

    @remote(needs=Permission.VIEW_VNC_CONSOLE, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def console_close(self, name: str, console: str) -> None:
        """Close the console; one that is not read for a minute is closed by itself."""
        raise NotImplementedError
