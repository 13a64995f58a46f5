"""cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.output import GREEN, RED
from mcvirt_client.cli.parser import Command, Group, Parser
from mcvirt_client.cli.report import Declined, UsageError

if TYPE_CHECKING:
    from mcvirt.types.membership import ConflictInfo, JoinReport, LeaveReport
    from mcvirt_client.cli.context import Context

STRING = "mcvirt-V4FhRi0WeyJ2ZXJzaW9uIjoxfQ"


def _get(context: Context) -> None:
    made = context.client.cluster.connect_string()
    context.out.value(made, lambda: made.text + "\n")
    until = made.expires.astimezone().strftime("%H:%M")
    context.out.say(
        f"It is good until {until}, for one node that joins. Whoever has it decides what this node becomes. On a "
        "member of the cluster, run `mcvirt cluster add-node --connect-string` with it."
    )


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--connect-string",
        "--connection-string",
        dest="connect_string",
        metavar="STRING",
        required=True,
        help="what `mcvirt cluster get-connect-string` has printed on the node that is to join; - reads it from stdin",
    )
    parser.add_argument("--dry-run", action="store_true", help="only see whether the node could join")


def _add(context: Context) -> int | None:
    args, client = context.args, context.client
    text = args.connect_string
    if text == "-":
        import sys

        text = sys.stdin.readline().strip()
    if args.dry_run:
        report = client.cluster.add_node(text, True)
        context.out.value(report, lambda: _checks(context, report))
        return 0 if all(check.ok for check in report.checks) else 3
    if context.interactive and not args.yes:
        report = client.cluster.add_node(text, True)
        context.out.warn(_checks(context, report).rstrip("\n"))
        context.confirm(f"Replace all existing configuration on node '{report.node}' by that of this cluster?")
    report = client.cluster.add_node(text)
    context.done(f"Successfully added node {report.node}", report)
    return None


def _checks(context: Context, report: JoinReport) -> str:
    rows = [(check.name, "ok" if check.ok else "FAILED", check.text) for check in report.checks]
    colours = {"Result": {"ok": GREEN, "FAILED": RED}}
    return f"Node {report.node} at {report.address}:\n" + context.out.table(("Check", "Result", "Found"), rows, colours)


def _remove_arguments(parser: Parser) -> None:
    parser.argument("--node", required=True, metavar="NODE", live="node", help="the node to remove")
    parser.add_argument("--force", action="store_true", help="it is gone for good: remove it without asking it")


def _remove(context: Context) -> None:
    args, client = context.args, context.client
    node = args.node
    if args.force:
        report = client.cluster.leaving(node)
        _confirm_force(context, report)
    else:
        context.confirm(f"Remove node '{node}' from the cluster?")
    report = client.cluster.remove_node(node, args.force)
    context.done(f"Successfully removed node {node}", report)


def _confirm_force(context: Context, report: LeaveReport) -> None:
    for what, names in (
        ("Virtual machines registered there, which will be registered nowhere", report.machines),
        ("Virtual machines that will be forgotten, with the data on their disks", report.lost),
        ("Hard drives that will be forgotten", report.disks),
        ("Storage backends that will be forgotten", report.backends),
    ):
        if names:
            context.out.warn(f"{what}: {', '.join(names)}")
    context.out.warn(f"Make sure that node '{report.node}' is off and does not come back by itself.")
    if context.args.yes:
        return
    if not context.interactive:
        raise UsageError(f"To remove node '{report.node}' by force needs --yes here.", "Nobody can be asked.")
    if context.answer("Type the name of the node to remove it: ") != report.node:
        raise Declined


def _promote_arguments(parser: Parser) -> None:
    parser.argument(
        "--yes-the-leader-is-off",
        dest="leader_is_off",
        metavar="NODE",
        live="node",
        help="the leader, by its name: you have made sure that it is off",
    )


def _promote(context: Context) -> None:
    made = context.client.cluster.promote(context.args.leader_is_off)
    context.done(f"Node {made.leader} leads the cluster now", made)
    if made.away:
        context.out.say(f"These nodes do not know it yet: {', '.join(made.away)}")


def _conflicts_arguments(parser: Parser) -> None:
    parser.argument("--node", metavar="NODE", live="node", help="the node that has them; none: this one")
    parser.add_argument("--clear", action="store_true", help="show them, and delete them for good")


def _conflicts(context: Context) -> None:
    args = context.args
    found = context.client.cluster.conflicts(args.node)
    if not args.clear:
        context.out.value(found, lambda: _conflict_table(context, found))
        return
    context.out.warn(_conflict_table(context, found).rstrip("\n"))
    if not found:
        context.done("", {"cleared": 0})
        return
    if not args.yes and not context.interactive:
        raise UsageError("To delete them needs --yes here.", "Nobody can be asked.")
    context.confirm("Delete these changes for good?")
    cleared = context.client.cluster.clear_conflicts(tuple(kept.id for kept in found), args.node)
    context.done(f"Successfully deleted {cleared} changes that were kept aside", {"cleared": cleared})


def _conflict_table(context: Context, found: tuple[ConflictInfo, ...]) -> str:
    rows = [
        (
            str(kept.id),
            kept.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            kept.leader,
            str(kept.revision),
            ", ".join(kept.what),
        )
        for kept in found
    ]
    return context.out.table(("ID", "Kept since", "Leader", "Revision", "Records"), rows) if rows else "None\n"


def _reset(context: Context) -> None:
    context.out.warn(
        "Users, groups, networks, storage backends and virtual machines of the cluster are forgotten here."
    )
    context.confirm("Make this node a cluster of its own, with an empty configuration?")
    context.client.cluster.reset()
    context.done("Successfully reset this node", {"reset": True})


ADD = Command(
    "Take a node into the cluster",
    _add,
    _add_arguments,
    description="All existing configuration on the node is replaced by that of the cluster. Run it on a member.",
    examples=(
        f"mcvirt cluster add-node --connect-string {STRING}",
        f"mcvirt cluster add-node --connect-string {STRING} --dry-run",
        "mcvirt cluster add-node --connect-string - --yes",
    ),
)

COMMANDS = {
    "cluster": Group(
        "The cluster: nodes join and leave, and one of them leads",
        {
            "get-connect-string": Command(
                "Print what another cluster needs to take this node in",
                _get,
                description="Run it on the node that is to join. What it printed before is worth nothing any more.",
                examples=("mcvirt cluster get-connect-string",),
            ),
            "add-node": ADD,
            "add": Command(
                ADD.help,
                _add,
                _add_arguments,
                description=ADD.description,
                examples=(f"mcvirt cluster add --connect-string {STRING}",),
                alias_of="add-node",
            ),
            "remove-node": Command(
                "Take a node out of the cluster",
                _remove,
                _remove_arguments,
                description="It becomes a cluster of its own, with nothing of this one's. Nothing may be left on it.",
                examples=(
                    "mcvirt cluster remove-node --node node3",
                    "mcvirt cluster remove-node --node node3 --force",
                ),
            ),
            "promote": Command(
                "Have this node lead the cluster, in place of one that is gone",
                _promote,
                _promote_arguments,
                description="The leader orders all changes. It is refused while any node reaches the leader.",
                examples=("mcvirt cluster promote", "mcvirt cluster promote --yes-the-leader-is-off node1"),
            ),
            "conflicts": Command(
                "Show changes that only one node had when another one became leader",
                _conflicts,
                _conflicts_arguments,
                examples=(
                    "mcvirt cluster conflicts",
                    "mcvirt cluster conflicts --node node1",
                    "mcvirt cluster conflicts --clear --yes",
                ),
            ),
            "reset": Command(
                "Make a node that was removed while it was away a cluster of its own",
                _reset,
                description="Its ISO images and the files of its storage backends stay.",
                examples=("mcvirt cluster reset", "mcvirt cluster reset --yes"),
            ),
        },
    )
}
