"""Record -> what the domain is to be. The one place where a virtual machine's record is put into libvirt's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import msgspec

from mcvirt.errors import Conflict, McvirtError
from mcvirt.types.vm import Flag, GraphicsDriver, StorageType
from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import Accelerator, AdapterDesign, Bus, DiskDesign, DomainDesign
from mcvirtd.hypervisor.design import GraphicsDriver as GraphicsDesign
from mcvirtd.state.records import DiskRecord, NetworkRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import DiskSource

UNUSABLE_GRAPHICS = frozenset({GraphicsDriver.XEN, GraphicsDriver.VBOX})


class Sources(Protocol):
    """Where a hard drive is on this node."""

    def source(self, record: DiskRecord) -> DiskSource:
        """Its path, and how it is written."""


class Isos(Protocol):
    """Where an ISO image is on this node."""

    def path(self, name: str) -> str:
        """The file; NotFound if there is none."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine with its disks: all that decides what its domain looks like."""

    vm: VmRecord
    disks: tuple[DiskRecord, ...]

    def disk(self, slot: int) -> DiskRecord | None:
        """The hard drive with this number, or None."""
        return next((disk for disk in self.disks if disk.slot == slot), None)


def disks_of(store: Store, vm: str) -> tuple[DiskRecord, ...]:
    """The hard drives of a virtual machine in the order of their numbers."""
    return tuple(
        sorted((disk for disk in store.all(DiskRecord).values() if disk.vm == vm), key=lambda disk: disk.slot or 0)
    )


class AcceleratorOfNode:
    """What guests of this node run with, and why: asked of libvirt once, and remembered."""

    def __init__(self, ask: Callable[[], tuple[Accelerator, str]]) -> None:
        self._ask = ask
        self._known: tuple[Accelerator, str] | None = None

    def __call__(self) -> tuple[Accelerator, str]:
        """The accelerator and the reason in words; LibvirtUnreachable if it was never known, and libvirt is away."""
        if self._known is None:
            self._known = self._ask()
        return self._known

    def name(self) -> str:
        """The accelerator, or "unknown"."""
        try:
            return self()[0]
        except McvirtError:
            return "unknown"


class Designer:
    """Makes domain designs for this node."""

    def __init__(
        self, store: Store, sources: Sources, isos: Isos, accelerator: AcceleratorOfNode, console_directory: str
    ) -> None:
        self._store = store
        self._sources = sources
        self._isos = isos
        self._accelerator = accelerator
        self._consoles = console_directory

    def design(self, machine: Machine) -> DomainDesign:
        """What the domain of *machine* is to be on this node."""
        vm = machine.vm
        return DomainDesign(
            uuid=vm.uuid,
            name=vm.name,
            memory=vm.memory,
            cpu_count=vm.cpu_count,
            machine=vm.machine.value,
            accelerator=self._accelerator()[0],
            disks=tuple(self.disk(disk) for disk in machine.disks),
            adapters=tuple(self.adapter(mac, network) for mac, network in vm.adapters.items()),
            iso=self.iso_path(vm),
            boot_from_iso=vm.boot_iso,
            graphics_driver=cast(GraphicsDesign, vm.graphics_driver.value),
            vnc_password=vm.vnc_password,
            windows=Flag.WINDOWS in vm.flags,
            autodeflate=vm.autodeflate,
            serial_log=self.console_log(vm),
        )

    def disk(self, record: DiskRecord) -> DiskDesign:
        """A hard drive as a device of a domain."""
        source = self._sources.source(record)
        return DiskDesign(
            source=source.path,
            slot=record.slot or 1,
            disk_id=record.id,
            kind=source.kind,
            format=source.format,
            bus=cast(Bus, record.driver.value.lower()),
            cache=designer.disk_cache(replicated=record.storage_type is StorageType.DRBD, direct=source.direct),
        )

    def adapter(self, mac: str, network: str) -> AdapterDesign:
        """A network adapter as a device of a domain."""
        record = self._store.get(NetworkRecord, network)
        if record is None:
            raise Conflict(text=f"Network adapter {mac} is on network '{network}', which does not exist.")
        return AdapterDesign(mac=mac, bridge=record.interface)

    def iso_path(self, vm: VmRecord) -> str | None:
        """The file of the image in the drive, or None."""
        return None if vm.iso is None else self._isos.path(vm.iso)

    def console_log(self, vm: VmRecord) -> str:
        """The file that gets what the guest says on its serial port."""
        return f"{self._consoles}/{vm.uuid}.log"
