"""drbd split-brain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Parser
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcvirt.types.split_brain import SplitInfo
    from mcvirt_client.cli.context import Context


def _arguments(parser: Parser) -> None:
    parser.intermixed = True
    parser.add_argument(
        "action",
        choices=("show", "resolve", "forget"),
        help="show what is split, of all or of NAME; resolve it, or undo that; forget what was set aside for an undo",
    )
    parser.argument(
        "vm_name", nargs="?", metavar="NAME", live="vm", help="the virtual machine, or the ID of one hard drive"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--keep", metavar="NODE", help="resolve: go on with the data of this node")
    way.add_argument("--undo", action="store_true", help="resolve: go on with the data that was set aside")
    parser.add_argument("--disk-id", type=int, metavar="ID", help="only this disk")


def _split_brain(context: Context) -> None:
    args, split = context.args, context.client.split_brain
    action, name = args.action, args.vm_name
    chosen = action == "resolve" if args.keep or args.undo else action in ("show", "forget")
    if not chosen or (action != "show" and name is None):
        raise UsageError(
            "Say `show [NAME]`, `resolve --keep NODE NAME`, `resolve --undo NAME` or `forget NAME`.",
            "`mcvirt drbd split-brain --help` explains.",
        )
    if action == "show":
        found = split.show(name)
    elif action == "forget":
        context.confirm(f"Delete for good what was set aside of {name}?")
        found = split.forget(name, args.disk_id)
    elif args.undo:
        context.confirm(f"Replace the data that {name} has now by what was set aside?")
        found = split.undo(name, args.disk_id)
    else:
        context.confirm(f"Go on with the data of {args.keep}, and set aside what the other node has?")
        found = split.resolve(name, args.keep, args.disk_id)
    context.out.value(found, lambda: _table(context, found))


def _table(context: Context, found: Sequence[SplitInfo]) -> str:
    from mcvirt.units import format_size

    rows = []
    for disk in found:
        for side in disk.sides:
            kept = ""
            if disk.undo is not None and disk.undo.node == side.node:
                kept = f"since {disk.undo.made.astimezone():%Y-%m-%d %H:%M}, by {disk.undo.by}"
            rows.append(
                (
                    f"{disk.vm} (disk {disk.slot})" if disk.vm else disk.disk,
                    side.node + (f" ({side.age} s ago)" if side.age is not None else ""),
                    "Split brain" if disk.split else "In Sync",
                    "running" if side.primary else "",
                    format_size(side.written) if side.written is not None else "",
                    kept,
                )
            )
    return context.out.table(("Disk", "Node", "State", "VM", "Written Since", "Data Set Aside"), rows)


SPLIT_BRAIN = Command(
    "Show and resolve disks whose two sides have gone different ways",
    _split_brain,
    _arguments,
    description="Nothing is discarded by itself. Resolving sets the data of the other node aside first, until it is "
    "taken back with --undo, or forgotten.",
    examples=(
        "mcvirt drbd split-brain show",
        "mcvirt drbd split-brain resolve --keep node1 web1",
        "mcvirt drbd split-brain resolve --undo web1",
        "mcvirt drbd split-brain forget web1",
    ),
)
