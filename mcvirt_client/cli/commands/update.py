"""update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcvirt_client.cli.commands.machine import GRAPHICS, disk_arguments, vm_name
from mcvirt_client.cli.parser import Command, Parser, disk_size, lower, memory
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    import argparse

    from mcvirt.types.vm import VmInfo
    from mcvirt_client.cli.context import Context

EXPLAINED = "`mcvirt update --help` explains."


def _arguments(parser: Parser) -> None:
    vm_name(parser)
    add = parser.add_argument
    add("--memory", type=memory, metavar="SIZE", help="the memory from the next start on: MiB, or with a unit (2GiB)")
    add("--cpu-count", type=int, metavar="N", help="the number of CPUs from the next start on")
    parser.argument(
        "--add-network", action="append", default=[], metavar="NETWORK", live="network", help="add a network adapter"
    )
    add("--remove-network", action="append", default=[], metavar="MAC", help="remove the adapter with this address")
    add("--change-network", metavar="MAC", help="put this adapter on another network, with --new-network")
    parser.argument("--new-network", metavar="NETWORK", live="network", help="the network for --change-network")
    add("--add-disk", type=disk_size, action="append", default=[], metavar="SIZE", help="create a disk and attach it")
    add("--delete-disk", type=int, metavar="ID", help="delete the disk with this number and its data")
    disk_arguments(parser)
    parser.argument(
        "--nodes",
        action="append",
        default=[],
        metavar="NODE",
        live="node",
        help="one of the two nodes of an added Drbd disk; twice. Needed where there are more, and no other such disk",
    )
    add("--graphics-driver", type=lower, choices=GRAPHICS, help="the display adapter from the next start on")
    add("--increase-disk", type=disk_size, metavar="SIZE", help="grow the disk --disk-id by this much")
    add("--disk-id", type=int, metavar="ID", help="the disk for --increase-disk")
    parser.argument(
        "--attach-iso",
        "--iso",
        dest="iso",
        nargs="?",
        const="",
        metavar="ISO",
        live="iso",
        help="put this ISO image into the drive; without a name: eject",
    )
    when = parser.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--autostart-on-boot", "ON_BOOT", "start it when the node starts"),
        ("--autostart-on-poll", "ON_POLL", "start it whenever it is found stopped"),
        ("--autostart-disable", "NO_AUTOSTART", "do not start it by itself"),
    ):
        when.add_argument(flag, dest="autostart", action="store_const", const=value, help=text)
    add("--add-flag", action="append", default=[], choices=("windows",), help="set a modification flag")
    add("--remove-flag", action="append", default=[], choices=("windows",), help="take a modification flag away")
    protection = parser.add_mutually_exclusive_group()
    protection.add_argument("--enable-delete-protection", action="store_true", help="refuse to delete it")
    protection.add_argument(
        "--disable-delete-protection", metavar="CODE", help="allow it again; CODE is the name reversed"
    )
    balloon = parser.add_mutually_exclusive_group()
    balloon.add_argument(
        "--enable-memballoon-deflation",
        dest="autodeflate",
        action="store_const",
        const=True,
        help="give the guest its memory back when it runs out of it",
    )
    balloon.add_argument(
        "--disable-memballoon-deflation", dest="autodeflate", action="store_const", const=False, help="do not"
    )


def _check(args: argparse.Namespace) -> None:
    if (args.change_network is None) != (args.new_network is None):
        raise UsageError("--change-network and --new-network belong together.", EXPLAINED)
    if (args.increase_disk is None) != (args.disk_id is None):
        raise UsageError("--increase-disk and --disk-id belong together.", EXPLAINED)
    if not args.add_disk and (args.storage_type or args.storage_backend or args.driver or args.nodes):
        raise UsageError(
            "--storage-type, --storage-backend, --hdd-driver and --nodes belong to --add-disk.", EXPLAINED
        )


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of VmChange that are named."""
    from mcvirt.types.vm import AutoStart, DiskDriver, DiskSpec, Flag, GraphicsDriver, StorageType

    fields: dict[str, Any] = {
        "memory": args.memory,
        "cpu_count": args.cpu_count,
        "add_networks": tuple(args.add_network),
        "remove_networks": tuple(args.remove_network),
        "change_networks": {args.change_network: args.new_network} if args.change_network else {},
        "add_disks": tuple(
            DiskSpec(
                size=size,
                storage_type=StorageType(args.storage_type) if args.storage_type else None,
                backend=args.storage_backend,
                driver=DiskDriver(args.driver) if args.driver else None,
                nodes=tuple(args.nodes),
            )
            for size in args.add_disk
        ),
        "delete_disk": args.delete_disk,
        "grow_disk": args.disk_id,
        "grow_by": args.increase_disk,
        "iso": args.iso,
        "add_flags": tuple(Flag(flag) for flag in args.add_flag),
        "remove_flags": tuple(Flag(flag) for flag in args.remove_flag),
        "autostart": AutoStart(args.autostart) if args.autostart else None,
        "graphics_driver": GraphicsDriver(args.graphics_driver) if args.graphics_driver else None,
        "autodeflate": args.autodeflate,
        "enable_delete_protection": args.enable_delete_protection,
        "disable_delete_protection": args.disable_delete_protection,
    }
    # False of autodeflate and "" of iso say something; None, False of the protection and empty tuples do not.
    return {
        name: value
        for name, value in fields.items()
        if value not in (None, (), {}) and not (name == "enable_delete_protection" and not value)
    }


def _update(context: Context) -> None:
    from mcvirt.types.vm import VmChange

    args = context.args
    _check(args)
    fields = _fields(args)
    if not fields:
        raise UsageError("Nothing is named that should change.", EXPLAINED)
    if args.delete_disk is not None:
        context.confirm(f"Delete disk {args.delete_disk} of virtual machine '{args.vm_name}' and the data on it?")
    vms = context.client.vms
    before = None
    if args.cpu_count is not None:
        # Who changes a number has one in mind that it changes from: if another was set meanwhile, that is refused.
        before = vms.info(args.vm_name).cpu_count
        fields["old_cpu_count"] = before
    info = vms.update(args.vm_name, VmChange(**fields))
    if context.out.json:
        context.out.value(info, str)
    else:
        _tell(context, info, before)


def _tell(context: Context, info: VmInfo, before: int | None) -> None:
    from mcvirt.units import format_size

    args, say = context.args, context.out.say
    if args.memory is not None:
        say(f"RAM allocation will be changed to {format_size(info.memory)} on next VM boot.")
    if args.cpu_count is not None:
        say(f"Number of virtual cores will be changed from {before} to {info.cpu_count}.")
    if args.add_flag or args.remove_flag:
        say(f"Modification flags set to: {', '.join(flag.value for flag in info.flags) or 'none'}")
    if info.restart_needed:
        say(f"VM {info.name} has to be stopped and started before all changes take effect.")
    for warning in info.warnings:
        say(f"Warning: {warning}")


COMMANDS = {
    "update": Command(
        "Change a virtual machine",
        _update,
        _arguments,
        description="It changes what is named and nothing else, all of it or nothing. Memory, CPUs, flags and the "
        "graphics driver change at the next start; disks, network adapters and the ISO image at once.",
        examples=(
            "mcvirt update web1 --memory 2GiB --cpu-count 2",
            "mcvirt update web1 --add-disk 20GiB --storage-backend ssd",
            "mcvirt update web1 --increase-disk 5GiB --disk-id 1",
            "mcvirt update web1 --change-network 00:16:3e:12:34:56 --new-network dmz",
            "mcvirt update web1 --iso debian-12.iso",
            "mcvirt update web1 --iso",
            "mcvirt update web1 --disable-delete-protection 1bew",
        ),
    )
}
