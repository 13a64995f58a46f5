"""create, delete, register, failover, unregister and lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Parser, capital, disk_size, lower, memory, upper
from mcvirt_client.cli.report import Declined

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context

GRAPHICS = ("virtio", "vga", "cirrus", "vmvga", "qxl", "bochs", "none", "xen", "vbox")
DRIVERS = ("VIRTIO", "SCSI", "SATA", "IDE", "USB", "SD")
STORAGE_TYPES = ("Local", "Drbd")


def vm_name(parser: Parser) -> None:
    """The one positional argument of many commands."""
    parser.argument("vm_name", metavar="NAME", live="vm", help="the virtual machine")


def disk_arguments(parser: Parser) -> None:
    """How a new disk is kept and attached."""
    parser.add_argument(
        "--storage-type", type=capital, choices=STORAGE_TYPES, help="Local, or Drbd: mirrored on two nodes"
    )
    parser.argument("--storage-backend", metavar="BACKEND", live="backend", help="where to keep the disk")
    parser.add_argument(
        "--hdd-driver", "--driver", dest="driver", type=upper, choices=DRIVERS, help="the bus (VIRTIO if not given)"
    )


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("vm_name", metavar="NAME", help="3 to 64 letters, digits and dashes")
    parser.add_argument(
        "--memory", type=memory, required=True, metavar="SIZE", help="memory: MiB, or with a unit (2GiB)"
    )
    parser.add_argument("--cpu-count", type=int, required=True, metavar="N", help="the number of CPUs")
    parser.add_argument(
        "--disk-size",
        type=disk_size,
        action="append",
        default=[],
        metavar="SIZE",
        help="create a disk: MiB, or with a unit (8GiB); again for more disks",
    )
    parser.argument(
        "--network",
        action="append",
        default=[],
        metavar="NETWORK",
        live="network",
        help="add a network adapter; again for more adapters",
    )
    parser.argument(
        "--nodes",
        "--node",
        dest="nodes",
        action="append",
        default=[],
        metavar="NODE",
        live="node",
        help="a node that may run it; again for more nodes",
    )
    disk_arguments(parser)
    parser.add_argument("--graphics-driver", type=lower, choices=GRAPHICS, help="the display adapter")
    parser.add_argument("--machine", type=lower, choices=("q35", "pc"), help="the machine type; pc for IDE disks")
    parser.add_argument(
        "--modification-flag",
        dest="flags",
        action="append",
        default=[],
        choices=("windows",),
        help="suit the machine to a kind of guest",
    )


def _create(context: Context) -> None:
    from mcvirt.types.vm import DiskDriver, DiskSpec, Flag, GraphicsDriver, Machine, StorageType, VmSpec

    args = context.args
    disks = tuple(
        DiskSpec(
            size=size,
            storage_type=StorageType(args.storage_type) if args.storage_type else None,
            backend=args.storage_backend,
            driver=DiskDriver(args.driver) if args.driver else None,
        )
        for size in args.disk_size
    )
    info = context.client.vms.create(
        VmSpec(
            name=args.vm_name,
            memory=args.memory,
            cpu_count=args.cpu_count,
            disks=disks,
            networks=tuple(args.network),
            nodes=tuple(args.nodes),
            graphics_driver=GraphicsDriver(args.graphics_driver) if args.graphics_driver else None,
            machine=Machine(args.machine) if args.machine else None,
            flags=tuple(Flag(flag) for flag in args.flags),
        )
    )
    context.done(f"Successfully created VM {info.name}", info)
    for warning in info.warnings:
        context.out.say(f"Warning: {warning}")


def _delete_arguments(parser: Parser) -> None:
    vm_name(parser)
    parser.add_argument("--keep-disks", action="store_true", help="detach the disks and keep them as hard drives")
    parser.add_argument("--keep-config", action="store_true", help="delete the disks, keep the machine unregistered")
    parser.add_argument("--delete-data", action="store_true", help="does nothing: the disks are deleted anyway")


def _delete(context: Context) -> None:
    args = context.args
    what = f"virtual machine '{args.vm_name}'" + ("" if args.keep_disks else " and the data on its disks")
    if args.keep_config:
        what = f"the disks of virtual machine '{args.vm_name}'"
    context.confirm(f"Delete {what}?")
    context.client.vms.delete(args.vm_name, args.keep_disks, args.keep_config)
    context.done(f"Successfully deleted VM {args.vm_name}", {"deleted": args.vm_name})


def _register(context: Context) -> None:
    name = context.args.vm_name
    context.client.vms.register(name)
    context.done(f"Successfully registered VM {name}", {"registered": name})


def _failover_arguments(parser: Parser) -> None:
    vm_name(parser)
    parser.argument(
        "--yes-node-is-off",
        dest="node_is_off",
        metavar="NODE",
        live="node",
        help="the node that the virtual machine is on, by its name: you have made sure that it is off",
    )
    parser.add_argument("--start", action="store_true", help="start the virtual machine, too")


def _failover(context: Context) -> None:
    args, name = context.args, context.args.vm_name
    off = args.node_is_off
    if off is None and context.interactive:
        owner = context.client.vms.info(name).node
        if owner is not None:
            context.out.warn(
                f"Virtual machine '{name}' is on node '{owner}'. If it still runs there, both write to its disks, and "
                "destroy the data on them. Make sure that the node is off, and can't come on by itself."
            )
            off = context.answer("Type the name of that node if it is off: ")
            if off != owner:
                raise Declined
    info = context.client.vms.failover(name, off, args.start)
    context.done(f"Successfully {'started' if args.start else 'registered'} VM {name} on node {info.node}", info)


def _unregister(context: Context) -> None:
    name = context.args.vm_name
    context.client.vms.unregister(name)
    context.done(f"Successfully unregistered VM {name}", {"unregistered": name})


def _lock_arguments(parser: Parser) -> None:
    vm_name(parser)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--check-lock", action="store_true", help="print LOCKED or UNLOCKED")
    one.add_argument("--lock", action="store_true", help="lock it")
    one.add_argument("--unlock", action="store_true", help="unlock it")


def _lock(context: Context) -> None:
    args = context.args
    if args.check_lock:
        state = context.client.vms.lock_state(args.vm_name)
        context.out.value({"name": args.vm_name, "lock": state}, lambda: f"{state.value}\n")
        return
    context.client.vms.set_lock(args.vm_name, bool(args.lock))
    context.done("", {"name": args.vm_name, "lock": "LOCKED" if args.lock else "UNLOCKED"})


COMMANDS = {
    "create": Command(
        "Create a virtual machine",
        _create,
        _create_arguments,
        description="If a disk or a network adapter can't be made, the virtual machine stays, and can be repaired with "
        "`mcvirt update` or deleted.",
        examples=(
            "mcvirt create web1 --memory 512 --cpu-count 1 --disk-size 8192 --network lan",
            "mcvirt create db1 --memory 4GiB --cpu-count 2 --disk-size 20GiB --storage-backend ssd --driver SCSI",
        ),
    ),
    "delete": Command(
        "Delete a virtual machine",
        _delete,
        _delete_arguments,
        description="The virtual machine must be stopped. Its disks go with it.",
        examples=("mcvirt delete web1", "mcvirt delete web1 --keep-disks", "mcvirt delete web1 --yes"),
    ),
    "register": Command(
        "Register a virtual machine on this node",
        _register,
        vm_name,
        description="With --host, on the node that is named there.",
        examples=("mcvirt register web1",),
    ),
    "failover": Command(
        "Take a virtual machine over from a node that is gone",
        _failover,
        _failover_arguments,
        description="This node becomes the one that runs it; with --host, the node that is named there. All its disks "
        "must be on storage that this node has. It is refused while any node of the cluster reaches the other one.",
        examples=("mcvirt failover web1", "mcvirt failover web1 --yes-node-is-off node1 --start"),
    ),
    "unregister": Command(
        "Take a virtual machine off its node, and keep it", _unregister, vm_name, examples=("mcvirt unregister web1",)
    ),
    "lock": Command(
        "Lock a virtual machine against changes, or unlock it",
        _lock,
        _lock_arguments,
        description="A locked virtual machine can't be started, reset, changed or deleted; it can be stopped.",
        examples=("mcvirt lock web1 --lock", "mcvirt lock web1 --unlock", "mcvirt lock web1 --check-lock"),
    ),
}
