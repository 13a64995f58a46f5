"""migrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt.units import format_size
from mcvirt_client.cli.commands.machine import vm_name
from mcvirt_client.cli.output import GREEN, RED
from mcvirt_client.cli.parser import Command, Parser, rate
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from mcvirt.types.migration import Migration, MigrationPlan, MigrationReport
    from mcvirt.types.move import MovePlan
    from mcvirt_client.cli.context import Context


def _arguments(parser: Parser) -> None:
    vm_name(parser)
    parser.argument("--node", required=True, metavar="NODE", live="node", help="the node that is to have it")
    parser.add_argument("--online", action="store_true", help="while the guest runs, which goes on there")
    parser.add_argument(
        "--wait-for-shutdown", action="store_true", help="wait until the guest has shut down, however long that takes"
    )
    parser.add_argument(
        "--start-after-migration", dest="start_after", action="store_true", help="start it on the other node"
    )
    parser.add_argument("--copy-storage", action="store_true", help="online: send disks along that only its node has")
    parser.add_argument(
        "--max-downtime",
        type=int,
        metavar="MS",
        help="online: for how many milliseconds the guest may stand still in the end (300 if not given)",
    )
    parser.add_argument(
        "--bandwidth",
        type=rate,
        metavar="SIZE",
        help="online: how much to send a second at most, in whole MiB (100MiB)",
    )
    parser.add_argument(
        "--deadline", type=int, metavar="SECONDS", help="online: give up, and stay, if it takes longer than that"
    )
    parser.add_argument("--dry-run", action="store_true", help="only look, and say what would be done")


def _wanted(context: Context) -> Migration:
    from mcvirt.types.migration import Migration

    args = context.args
    hint = "`mcvirt migrate --help` explains the ways."
    if args.online and args.wait_for_shutdown:
        raise UsageError("--online can't be combined with --wait-for-shutdown: the guest goes on running.", hint)
    if args.online and args.start_after:
        raise UsageError("--online can't be combined with --start-after-migration: the guest goes on running.", hint)
    for name in ("max_downtime", "bandwidth", "deadline"):
        value = getattr(args, name)
        word = "--" + name.replace("_", "-")
        if value is not None and not args.online:
            raise UsageError(f"{word} is for --online.", hint)
        if value is not None and value <= 0:
            raise UsageError(f"{word} must be more than 0.", hint)
    return Migration(
        node=args.node,
        online=args.online,
        wait_for_shutdown=args.wait_for_shutdown,
        start_after=args.start_after,
        copy_storage=args.copy_storage,
        max_downtime=args.max_downtime,
        bandwidth=args.bandwidth,
        deadline=args.deadline,
    )


def _migrate(context: Context) -> int | None:
    wanted, name = _wanted(context), context.args.vm_name
    if context.args.dry_run:
        plan = context.client.migrations.plan(name, wanted)
        context.out.value(plan, lambda: plan_text(context, plan))
        return 0 if plan.ok else 3
    report = context.client.migrations.migrate(name, wanted)
    context.done(f"Successfully migrated '{name}' to {report.target}", report)
    if not context.out.json and report.online:
        context.out.say(report_text(report))
    return None


def report_text(report: MigrationReport) -> str:
    """How long it took, in a sentence."""
    parts = [f"{report.seconds:.1f} s in all"]
    if report.downtime is not None:
        parts.append(f"the guest stood still for {report.downtime} ms")
    if report.size is not None:
        parts.append(f"{format_size(report.size)} sent")
    return "It took " + ", ".join(parts)


def plan_text(context: Context, plan: MigrationPlan | MovePlan) -> str:
    """What was looked at, and what would be done."""
    rows = [(check.name, "ok" if check.ok else "FAILED", check.text) for check in plan.checks]
    colours = {"Result": {"ok": GREEN, "FAILED": RED}}
    text = context.out.table(("Check", "Result", "Found"), rows, colours)
    text += "\nWhat would be done:\n"
    text += "".join(f"  {number}. {step}\n" for number, step in enumerate(plan.steps, 1))
    if plan.size:
        text += f"About {format_size(plan.size)} would be sent"
        text += f", which takes about {plan.seconds} s at a usual speed.\n" if plan.seconds else ".\n"
    if not plan.ok:
        text += "It can't be done as things are.\n"
    return text


COMMANDS = {
    "migrate": Command(
        "Move a virtual machine to another node",
        _migrate,
        _arguments,
        description="A stopped virtual machine is registered on the other node instead of its own. A running one moves "
        "with --online, or after its guest has shut down, with --wait-for-shutdown: until then nothing is held, "
        "and `mcvirt task cancel` ends the waiting. Everything is checked first, on both nodes.",
        examples=(
            "mcvirt migrate web1 --node node2",
            "mcvirt migrate web1 --node node2 --online",
            "mcvirt migrate web1 --node node2 --online --copy-storage --bandwidth 50MiB --deadline 600",
            "mcvirt migrate web1 --node node2 --wait-for-shutdown --start-after-migration",
            "mcvirt migrate web1 --node node2 --online --dry-run",
        ),
    )
}
