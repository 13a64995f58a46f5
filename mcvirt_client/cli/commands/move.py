"""move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt.units import format_size
from mcvirt_client.cli.commands.machine import vm_name
from mcvirt_client.cli.commands.migrate import plan_text
from mcvirt_client.cli.parser import Command, Parser

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context


def _arguments(parser: Parser) -> None:
    vm_name(parser)
    parser.argument(
        "--source-node",
        metavar="NODE",
        live="node",
        help="the node that is not to have the disks any more; if left out, the one that does not have the machine",
    )
    parser.argument(
        "--destination-node", required=True, metavar="NODE", live="node", help="the node that is to have them instead"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="although the source node does not answer, or has no good data: what it has is replaced all the same",
    )
    parser.add_argument("--dry-run", action="store_true", help="only look, and say what would be done")


def _move(context: Context) -> int | None:
    args, moves = context.args, context.client.moves
    wanted = {"destination": args.destination_node, "source": args.source_node, "force": args.force}
    if args.dry_run:
        plan = moves.plan(args.vm_name, **wanted)
        context.out.value(plan, lambda: plan_text(context, plan))
        return 0 if plan.ok else 3
    report = moves.move(args.vm_name, **wanted)
    instead = f" from {report.source}" if report.source else ""
    context.done(f"Successfully moved the disks of '{report.name}'{instead} to {report.destination}", report)
    if not context.out.json:
        context.out.say(f"It took {report.seconds:.1f} s in all, {format_size(report.size)} copied")
        if report.left:
            context.out.say(f"Node {report.source} deletes what it had of them as soon as it can")
    return None


COMMANDS = {
    "move": Command(
        "Move one side of a virtual machine's replicated disks to another node",
        _move,
        _arguments,
        description="The machine stays on its node, and may run meanwhile; the other one of the two nodes that have "
        "its disks is replaced. Everything is copied to the new node, and from the beginning of that until it is done "
        "only the machine's node has the newest data: the old one is no longer written to. `mcvirt task cancel` "
        "goes back to it. With --force the old node may be gone.",
        examples=(
            "mcvirt move --source-node node2 --destination-node node3 web1",
            "mcvirt move --source-node node2 --destination-node node3 web1 --dry-run",
            "mcvirt move --source-node node2 --destination-node node3 web1 --force",
            "mcvirt move --destination-node node3 web1",
        ),
    )
}
