"""node drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt.units import format_size
from mcvirt_client.cli.output import GREEN, RED
from mcvirt_client.cli.parser import Command, Parser, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcvirt.types.drain import DrainMove, DrainPlan
    from mcvirt_client.cli.context import Context


def _arguments(parser: Parser) -> None:
    parser.argument("node", live="node", metavar="NODE", help="the node to be emptied, or filled again")
    parser.add_argument("--return", dest="back", action="store_true", help="bring back what was moved off it")
    parser.add_argument(
        "--copy-storage", action="store_true", help="send disks along that only one node has, of machines that run"
    )
    parser.add_argument(
        "--as-far-as-possible", dest="partly", action="store_true", help="move the others where some can't be moved"
    )
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="NUMBER", help="how many to move at the same time (1)"
    )
    parser.add_argument(
        "--bandwidth",
        type=rate,
        metavar="SIZE",
        help="how much to send a second at most, in whole MiB, of each that runs (100MiB)",
    )
    parser.add_argument(
        "--deadline", type=int, metavar="SECONDS", help="leave one that runs where it is if it takes longer than that"
    )
    parser.add_argument("--dry-run", action="store_true", help="only look, and say what would be done")


def _drain(context: Context) -> int | None:
    from mcvirt.types.drain import Drain

    args = context.args
    how = Drain(
        back=args.back,
        copy_storage=args.copy_storage,
        partly=args.partly,
        at_once=args.at_once,
        bandwidth=args.bandwidth,
        deadline=args.deadline,
    )
    if args.dry_run:
        plan = context.client.drains.plan(args.node, how)
        context.out.value(plan, lambda: _plan_text(context, plan))
        return 0 if plan.ok else 3
    report = context.client.drains.drain(args.node, how)
    count = f"{len(report.moved)} virtual machine{'' if len(report.moved) == 1 else 's'}"
    done = f"brought {count} back to {args.node}" if report.back else f"moved {count} off {args.node}"
    context.done(f"Successfully {done}", report)
    if not context.out.json:
        for line in _lines(report.moved):
            context.out.say(line)
    return None


def _lines(moves: Sequence[DrainMove]) -> list[str]:
    return [f"  {move.name}: {move.source} -> {move.target}{', online' if move.online else ''}" for move in moves]


def _plan_text(context: Context, plan: DrainPlan) -> str:
    rows = [
        (
            move.name,
            "moves",
            f"{move.source} -> {move.target}, {'online' if move.online else 'stopped'}"
            + (", with its disks" if move.copy_storage else "")
            + (f", about {format_size(move.size)} to send" if move.size else ""),
        )
        for move in plan.moves
    ]
    rows += [(each.name, "STAYS", each.reason) for each in plan.staying]
    if not rows:
        return f"There is nothing to move {'back to' if plan.back else 'off'} {plan.node}.\n"
    text = context.out.table(("VM Name", "Plan", "How, or why not"), rows, {"Plan": {"moves": GREEN, "STAYS": RED}})
    if not plan.ok:
        text += "\nAs things are, --as-far-as-possible would move the others only.\n" if plan.moves else ""
    return text


DRAIN = Command(
    "Move all virtual machines off a node, and back",
    _drain,
    _arguments,
    description="Running ones go on running, stopped ones are registered elsewhere. Everything is checked first, and "
    "refused together. One that fails stops no other; the error in the end names those that are left, and the same "
    "command goes on. The cluster remembers what was moved: --return brings just that back, wherever it is by then.",
    examples=(
        "mcvirt node drain node1",
        "mcvirt node drain node1 --dry-run",
        "mcvirt node drain node1 --copy-storage --as-far-as-possible --at-once 2",
        "mcvirt node drain node1 --return",
    ),
)
