"""drbd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.commands.split_brain import SPLIT_BRAIN
from mcvirt_client.cli.output import GREEN, RED
from mcvirt_client.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcvirt.types.drbd import DrbdInfo, DrbdLeg, ResourceState
    from mcvirt_client.cli.context import Context
    from mcvirt_client.cli.output import Output

IN_SYNC, OUT_OF_SYNC, SPLIT = "In Sync", "Out of Sync", "Split brain"
_COLOURS = {IN_SYNC: GREEN, OUT_OF_SYNC: RED, SPLIT: RED, "Connected": GREEN, "StandAlone": RED, "UpToDate": GREEN}


def _enable(context: Context) -> None:
    done = context.client.drbd.enable()
    context.done("Successfully enabled DRBD", done)
    for node, path in sorted(done.kept_aside.items()):
        context.out.say(f"Node {node}: the configuration that DRBD had before is kept as {path}.")
    for node, texts in sorted(done.warnings.items()):
        for text in texts:
            context.out.say(f"Warning: node {node}: {text}")


def _list(context: Context) -> None:
    drives = context.client.drbd.list()
    context.out.value(drives, lambda: _table(context.out, drives))
    for drive in drives:
        for warning in drive.warnings():
            context.out.say(f"Warning: {drive.vm + ': ' if drive.vm else ''}{warning}")


def _attach_arguments(parser: Parser) -> None:
    parser.argument("vm_name", metavar="NAME", live="vm", help="the virtual machine")
    parser.add_argument("--node", metavar="NODE", help="only on this node")
    parser.add_argument("--disk-id", type=int, metavar="ID", help="only this disk")


def _attach(context: Context) -> None:
    from mcvirt.units import format_size

    args = context.args
    done = context.client.drbd.attach(args.vm_name, args.node, args.disk_id)
    context.out.value(
        done,
        lambda: "".join(
            f"Attached {each.disk} on {' and '.join(each.nodes)}; {format_size(each.copied)} were copied\n"
            for each in done
        ),
    )


def _table(out: Output, drives: Sequence[DrbdInfo]) -> str:
    headers = ("Volume Name", "VM Name", "Minor", "Port", "Role", "Connection State", "Disk State", "Sync Status")
    rows = [
        (
            drive.resource,
            f"{drive.vm} ({drive.slot})" if drive.vm else "",
            str(drive.minor),
            str(drive.port),
            _both(drive, lambda state: state.role),
            connection(drive),
            _both(drive, lambda state: state.disk),
            sync(drive),
            "" if drive.verified is None else f"{drive.verified.astimezone():%Y-%m-%d %H:%M} {drive.verification}",
        )
        for drive in drives
    ]
    return out.table((*headers, "Last Verified"), rows, {"Sync Status": _COLOURS, "Connection State": _COLOURS})


def _both(drive: DrbdInfo, word: Callable[[ResourceState], str]) -> str:
    return ", ".join(f"{leg.node}: {_of(leg, word)}" for leg in drive.legs)


def _of(leg: DrbdLeg, word: Callable[[ResourceState], str]) -> str:
    if leg.state is None:
        return "Down" if leg.known else "Unknown"
    return word(leg.state) + (f" ({leg.age} s ago)" if leg.age is not None else "")


def connection(drive: DrbdInfo) -> str:
    """One word where both sides say the same, else what each says."""
    words = {_of(leg, lambda state: state.connection) for leg in drive.legs}
    return words.pop() if len(words) == 1 else _both(drive, lambda state: state.connection)


def sync(drive: DrbdInfo) -> str:
    """Whether both sides are equal, and how far what goes on is."""
    from mcvirt.units import format_size

    if drive.split_brain:
        return SPLIT
    states = [leg.state for leg in drive.legs if leg.state is not None]
    for state in states:
        if state.checking or state.copying:
            done = "" if state.done is None else f" {state.done:.1f}%"
            left = "" if state.seconds_left is None else f", {state.seconds_left} s left"
            return f"{'Verifying' if state.checking else 'Syncing'}{done}{left}"
    if drive.failed or drive.out_of_sync:
        return f"{OUT_OF_SYNC} ({format_size(drive.out_of_sync)})" if drive.out_of_sync else OUT_OF_SYNC
    if not states or not all(state.disk == "UpToDate" for state in states) or not any(s.connected for s in states):
        return OUT_OF_SYNC if states else "Unknown"
    return IN_SYNC


def sides(out: Output, drives: Sequence[DrbdInfo]) -> str:
    """The two sides of each hard drive of a machine, for `info`."""
    rows = [
        (
            str(drive.slot),
            leg.node,
            _of(leg, lambda state: state.role),
            _of(leg, lambda state: state.connection),
            _of(leg, lambda state: state.disk),
            sync(drive),
        )
        for drive in drives
        for leg in drive.legs
    ]
    headers = ("-- Disk ID --", "-- Node --", "DRBD Role", "Connection", "Disk State", "Sync Status")
    return out.table(headers, rows, {"Sync Status": _COLOURS, "Connection": _COLOURS, "Disk State": _COLOURS})


COMMANDS = {
    "drbd": Group(
        "Replication of hard drives between two nodes by DRBD",
        {
            "enable": Command(
                "Make all nodes ready to replicate hard drives",
                _enable,
                examples=("mcvirt drbd enable",),
            ),
            "list": Command(
                "List all replicated hard drives, and how their two sides are",
                _list,
                examples=("mcvirt drbd list", "mcvirt drbd list --json"),
            ),
            "attach": Command(
                "Have sides of replicated disks in use again that were given up",
                _attach,
                _attach_arguments,
                description="A side is given up when its storage fails; the other one goes on alone. Once the storage "
                "works again, this attaches it, or brings up and connects what somebody has taken down or cut off, and "
                "copies what it has missed, while the virtual machine runs or is stopped.",
                examples=("mcvirt drbd attach web1", "mcvirt drbd attach web1 --node node2 --disk-id 1"),
            ),
            "split-brain": SPLIT_BRAIN,
        },
    )
}
