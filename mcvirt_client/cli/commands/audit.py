"""audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="how many, the newest (100)")
    parser.argument("--user", metavar="NAME", live="user", help="only what this user did")
    parser.argument("--target", metavar="NAME", live="vm", help="only what was done to this object")


def _list(context: Context) -> None:
    args = context.args
    entries = context.client.audit.list(args.limit, args.user, args.target)
    context.out.value(
        entries,
        lambda: context.out.table(
            ("Time", "User", "Address", "Node", "Operation", "Target", "Result", "Detail", "Reference"),
            [
                (
                    entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                    entry.user,
                    entry.address,
                    entry.node,
                    entry.operation,
                    entry.target,
                    entry.result,
                    entry.detail,
                    entry.reference,
                )
                for entry in entries
            ],
        ),
    )


COMMANDS = {
    "audit": Group(
        "The audit trail",
        {
            "list": Command(
                "List who did what, from where, to what, and how it ended; the newest last",
                _list,
                _list_arguments,
                examples=("mcvirt audit list", "mcvirt audit list --user alice --limit 20", "mcvirt audit list --json"),
            )
        },
    )
}
