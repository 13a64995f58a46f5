"""hard-drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.commands.machine import DRIVERS, disk_arguments
from mcvirt_client.cli.parser import Command, Group, Parser, disk_size, upper

if TYPE_CHECKING:
    from mcvirt.types.storage import DiskInfo
    from mcvirt_client.cli.context import Context


def _list(context: Context) -> None:
    disks = context.client.hard_drives.list()
    context.out.value(disks, lambda: _table(context, disks))


def _table(context: Context, disks: tuple[DiskInfo, ...]) -> str:
    from mcvirt.units import format_size

    headers = ("ID", "Size", "Type", "Storage Backend", "Volume", "Nodes", "Virtual Machine")
    return context.out.table(
        headers,
        [
            (
                disk.id,
                format_size(disk.size),
                disk.storage_type.value,
                disk.backend,
                disk.volume,
                ", ".join(disk.nodes),
                _use(disk),
            )
            for disk in disks
        ],
    )


def _use(disk: DiskInfo) -> str:
    use = [f"{disk.vm} (disk {disk.slot})"] if disk.vm else []
    return ", ".join([*use, "being deleted"] if disk.deleting else use)


def _id(parser: Parser) -> None:
    parser.argument(
        "hard_drive_id", metavar="ID", live="disk", help="the hard drive, as `mcvirt hard-drive list` shows it"
    )


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("size", type=disk_size, metavar="SIZE", help="MiB, or with a unit (8GiB)")
    disk_arguments(parser)
    parser.argument(
        "--nodes",
        action="append",
        default=[],
        metavar="NODE",
        live="node",
        help="one of the two nodes of a Drbd one; twice. Needed where there are more",
    )
    parser.argument("--virtual-machine", metavar="NAME", live="vm", help="attach it to this virtual machine")


def _create(context: Context) -> None:
    from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType

    args = context.args
    disk = context.client.hard_drives.create(
        DiskSpec(
            size=args.size,
            storage_type=StorageType(args.storage_type) if args.storage_type else None,
            backend=args.storage_backend,
            driver=DiskDriver(args.driver) if args.driver else None,
            nodes=tuple(args.nodes),
        ),
        args.virtual_machine,
    )
    context.out.value(disk, lambda: f"Created hard drive: {disk.id}\n")


def _attach_arguments(parser: Parser) -> None:
    _id(parser)
    parser.argument("virtual_machine_name", metavar="NAME", live="vm", help="the virtual machine")


def _attach(context: Context) -> None:
    disk = context.client.hard_drives.attach(context.args.hard_drive_id, context.args.virtual_machine_name)
    context.done("", disk)


def _detach(context: Context) -> None:
    context.done("", context.client.hard_drives.detach(context.args.hard_drive_id))


def _import_arguments(parser: Parser) -> None:
    parser.add_argument("volume_name", metavar="VOLUME", help="the name of the volume, or of the file")
    parser.argument("storage_backend_id", metavar="BACKEND", live="backend", help="the storage backend, by name or ID")
    parser.argument("--virtual-machine", metavar="NAME", live="vm", help="attach it to this virtual machine")
    parser.add_argument("--hdd-driver", "--driver", dest="driver", type=upper, choices=DRIVERS, help="the bus")


def _import(context: Context) -> None:
    from mcvirt.types.vm import DiskDriver

    args = context.args
    driver = DiskDriver(args.driver) if args.driver else None
    disk = context.client.hard_drives.import_volume(
        args.volume_name, args.storage_backend_id, args.virtual_machine, driver
    )
    context.out.value(disk, lambda: f"Created hard drive: {disk.id}\n")


def _delete_arguments(parser: Parser) -> None:
    _id(parser)
    parser.add_argument("--forget", action="store_true", help="its storage is gone for good: take it off the list")


def _delete(context: Context) -> None:
    disk, forget = context.args.hard_drive_id, context.args.forget
    context.confirm(f"Forget hard drive {disk}?" if forget else f"Delete hard drive {disk} and the data on it?")
    context.client.hard_drives.delete(disk, forget)
    context.done("", {"deleted": disk})


HD = "hd-0123456789abcdef01-0123456789abcdef012345"

COMMANDS = {
    "hard-drive": Group(
        "Hard drives, which are objects of their own, attached to one virtual machine or to none",
        {
            "list": Command("List all hard drives", _list, examples=("mcvirt hard-drive list",)),
            "create": Command(
                "Create a hard drive",
                _create,
                _create_arguments,
                examples=(
                    "mcvirt hard-drive create 20GiB --storage-backend ssd",
                    "mcvirt hard-drive create 8192 --virtual-machine web1",
                ),
            ),
            "attach": Command(
                "Attach a hard drive that no virtual machine has",
                _attach,
                _attach_arguments,
                examples=(f"mcvirt hard-drive attach {HD} web1",),
            ),
            "detach": Command(
                "Detach a hard drive from its virtual machine, and keep its data",
                _detach,
                _id,
                examples=(f"mcvirt hard-drive detach {HD}",),
            ),
            "import": Command(
                "Make a hard drive of a volume that exists already",
                _import,
                _import_arguments,
                description="The volume must be on this node, and nothing may use it.",
                examples=("mcvirt hard-drive import old-web1-disk ssd --virtual-machine web1",),
            ),
            "delete": Command(
                "Delete a detached hard drive and its data",
                _delete,
                _delete_arguments,
                examples=(f"mcvirt hard-drive delete {HD}", f"mcvirt hard-drive delete {HD} --forget"),
            ),
        },
    )
}
