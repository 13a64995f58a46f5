"""verify and resync."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Parser, disk_size
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcvirt.types.verification import Verification, VerificationState, VerifySettings
    from mcvirt_client.cli.context import Context

PASSED = "Drbd verification for {} completed without out-of-sync blocks"


def _verify_arguments(parser: Parser) -> None:
    parser.argument(
        "vm_name",
        nargs="?",
        metavar="NAME",
        live="vm",
        help="verify all replicated disks of this VM, or the hard drive with this ID",
    )
    parser.add_argument("--all", action="store_true", help="verify all replicated disks of the cluster")
    parser.add_argument("--history", action="store_true", help="show the last verifications, of NAME or of all")
    parser.add_argument(
        "--schedule",
        nargs="?",
        const="",
        metavar="WHEN",
        help='verify all by itself: off, daily, weekly, monthly or a day of the week, with a time ("sunday 03:00");'
        " without WHEN show what is set",
    )
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help="how many are verified at the same time (also of --all)"
    )
    parser.add_argument(
        "--rate",
        type=disk_size,
        metavar="SIZE",
        help="how much each by schedule may read a second (20MiB); 0: no limit",
    )


def _verify(context: Context) -> None:
    args = context.args
    settings = args.schedule is not None or args.concurrency is not None or args.rate is not None
    ways = [bool(args.vm_name) and not args.history, args.all, args.history, settings]
    if ways.count(True) != 1:
        raise UsageError(
            "Name one virtual machine, the ID of one hard drive, or one of --all, --history and --schedule.",
            "`mcvirt verify --help` explains.",
        )
    if settings:
        _schedule(context)
    elif args.history:
        states = context.client.verification.states(args.vm_name)
        context.out.value(states, lambda: _history(context, states))
    else:
        _compare(context)


def _compare(context: Context) -> None:
    from mcvirt.errors import VerificationFailed

    verification = context.client.verification
    try:
        done = verification.verify_all() if context.args.all else verification.verify(context.args.vm_name)
    except VerificationFailed as error:
        passed = error.fields.get("passed")
        for disk in passed if isinstance(passed, list | tuple) else ():
            context.out.say(PASSED.format(disk))
        raise
    context.out.value(done, lambda: _passed(done))


def _passed(done: Sequence[Verification]) -> str:
    return "".join(PASSED.format(each.disk) + "\n" for each in done) or "There are no replicated disks.\n"


def _history(context: Context, states: Sequence[VerificationState]) -> str:
    from mcvirt.units import format_size

    headers = ("Virtual Machine", "Hard Drive", "Started", "Duration", "By", "On", "Result", "Differ", "Reason")
    rows = [
        (
            f"{state.vm} (disk {state.slot})" if state.vm else "",
            state.disk,
            f"{run.started.astimezone():%Y-%m-%d %H:%M:%S}",
            f"{(run.ended - run.started).total_seconds():.0f} s",
            run.by,
            run.node,
            run.result,
            format_size(run.out_of_sync) if run.out_of_sync else "",
            run.reason,
        )
        for state in states
        for run in state.runs
    ]
    return context.out.table(headers, rows)


def _schedule(context: Context) -> None:
    args, verification = context.args, context.client.verification
    if not args.schedule and args.concurrency is None and args.rate is None:
        settings = verification.settings()
    else:
        settings = verification.set_schedule(args.schedule or None, args.concurrency, args.rate)
    context.out.value(settings, lambda: _settings(settings))


def _settings(settings: VerifySettings) -> str:
    from mcvirt.units import format_size

    rate = f"{format_size(settings.rate)} a second each" if settings.rate else "as fast as a resync may be"
    return f"Schedule: {settings.schedule}\nAt the same time: {settings.concurrency}\nRate: {rate}\n"


def _resync_arguments(parser: Parser) -> None:
    parser.argument("vm_name", metavar="NAME", live="vm", help="the virtual machine, or the ID of one hard drive")
    good = parser.add_mutually_exclusive_group(required=True)
    good.add_argument("--source-node", metavar="NODE", help="the node that has the good data")
    good.add_argument(
        "--auto-determine", action="store_true", help="the good data is where the virtual machine runs, if it does"
    )
    parser.add_argument("--disk-id", type=int, metavar="ID", help="only this disk")
    parser.add_argument("--full", action="store_true", help="copy everything, and not only what is known to differ")


def _resync(context: Context) -> None:
    from mcvirt.units import format_size

    args = context.args
    if args.source_node:
        context.confirm(f"Overwrite what differs on the other node with the data of {args.source_node}?")
    done = context.client.verification.resync(args.vm_name, args.source_node, args.disk_id, args.full)
    context.out.value(
        done,
        lambda: "".join(
            f"Resynchronised {each.disk} from {each.source}: {format_size(each.copied)}\n" for each in done
        ),
    )


COMMANDS = {
    "verify": Command(
        "Compare both sides of replicated disks",
        _verify,
        _verify_arguments,
        description="Every block is read on both nodes, whether the virtual machine runs or not. Where blocks differ, "
        "the virtual machine is not started again before `mcvirt resync` has repaired them. --schedule says when that "
        "is done by itself, for the first time when that time comes next.",
        examples=(
            "mcvirt verify web1",
            "mcvirt verify --all",
            "mcvirt verify --history web1",
            'mcvirt verify --schedule "sunday 03:00" --concurrency 2 --rate 50MiB',
            "mcvirt verify --schedule off",
        ),
    ),
    "resync": Command(
        "Make both sides of replicated disks equal again",
        _resync,
        _resync_arguments,
        description="Only blocks that are known to differ are copied, while the virtual machine runs or is stopped.",
        examples=(
            "mcvirt resync web1 --auto-determine",
            "mcvirt resync web1 --source-node node1 --disk-id 2",
            "mcvirt resync web1 --source-node node1 --full",
        ),
    ),
}
