"""permission."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Parser
from mcvirt_client.cli.report import UsageError, after_changes

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context

EXPLAINED = "`mcvirt permission --help` explains."


def _arguments(parser: Parser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    parser_where = where.add_argument("vm_name", nargs="?", metavar="NAME", help="rights on this virtual machine")
    parser_where.live = "vm"  # type: ignore[attr-defined]
    where.add_argument("--global", dest="everywhere", action="store_true", help="rights everywhere")
    where.add_argument("--list", action="store_true", help="list all permissions and what they allow")
    for verb, preposition in (("add", "to"), ("delete", "from")):
        for role in ("user", "owner", "superuser"):
            what = "the superusers" if role == "superuser" else f"group '{role}'"
            parser.argument(
                f"--{verb}-{role}",
                action="append",
                default=[],
                metavar="USER",
                live="user",
                help=f"{verb} a user {preposition} {what}",
            )


def _permission(context: Context) -> None:
    args = context.args
    changes = [
        (verb, role, tuple(users))
        for verb in ("add", "delete")
        for role in ("user", "owner", "superuser")
        if (users := getattr(args, f"{verb}_{role}"))
    ]
    if args.list:
        if changes:
            raise UsageError("--list changes nothing.", EXPLAINED)
        _list(context)
        return
    if not changes:
        raise UsageError("Say whom to add or delete.", EXPLAINED)
    if args.vm_name is not None and any(role == "superuser" for _, role, _ in changes):
        raise UsageError("Superusers are superusers everywhere: use --global.", EXPLAINED)
    done: list[dict[str, object]] = []
    for verb, role, users in changes:
        try:
            _change(context, verb, role, users)
        except Exception as error:
            if done:
                raise after_changes(error) from None
            raise
        done.append({"change": verb, "role": role, "users": users, "vm": args.vm_name})
    context.done("", done)


def _change(context: Context, verb: str, role: str, users: tuple[str, ...]) -> None:
    client = context.client
    if role == "superuser":
        for user in users:
            (client.users.add_superuser if verb == "add" else client.users.remove_superuser)(user)
        return
    change = client.groups.add_users if verb == "add" else client.groups.remove_users
    change(role, users, context.args.vm_name)


def _list(context: Context) -> None:
    permissions = context.client.groups.permissions()
    context.out.value(
        permissions,
        lambda: context.out.table(
            ("Permission", "Description", "For one VM"),
            [(p.permission, p.description, "Yes" if p.vm else "") for p in permissions],
        ),
    )


COMMANDS = {
    "permission": Command(
        "List permissions; give and take the rights of users, owners and superusers",
        _permission,
        _arguments,
        description="`mcvirt group` and `mcvirt user` can do more.",
        examples=(
            "mcvirt permission --list",
            "mcvirt permission web1 --add-owner alice",
            "mcvirt permission --global --add-user bob",
            "mcvirt permission --global --add-superuser carol",
        ),
    )
}
