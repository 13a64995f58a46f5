"""group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser, upper

if TYPE_CHECKING:
    from mcvirt.types.auth import GroupInfo
    from mcvirt_client.cli.context import Context


def _list(context: Context) -> None:
    groups = context.client.groups.list()

    def on_machines(group: GroupInfo) -> str:
        return "; ".join(f"{vm}: {', '.join(users)}" for vm, users in sorted(group.vm_users.items()) if users)

    context.out.value(
        groups,
        lambda: context.out.table(
            ("Name", "Permissions", "Global users", "Users of single VMs"),
            [(g.name, ", ".join(g.permissions), ", ".join(g.users), on_machines(g)) for g in groups],
        ),
    )


def _name(parser: Parser) -> None:
    parser.argument("name", metavar="NAME", live="group", help="the group")


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="up to 64 letters, digits and dashes")


def _create(context: Context) -> None:
    context.done("", context.client.groups.create(context.args.name))


def _delete(context: Context) -> None:
    context.client.groups.delete(context.args.name)
    context.done("", {"deleted": context.args.name})


def _permission_arguments(parser: Parser) -> None:
    _name(parser)
    parser.argument(
        "permissions",
        nargs="+",
        type=upper,
        metavar="PERMISSION",
        live="permission",
        help="see `mcvirt permission --list`",
    )


def _add_permission(context: Context) -> None:
    args = context.args
    group = context.client.groups.add_permissions(args.name, tuple(args.permissions))
    context.done(f"Added {', '.join(args.permissions)} to group {args.name}", group)


def _remove_permission(context: Context) -> None:
    args = context.args
    group = context.client.groups.remove_permissions(args.name, tuple(args.permissions))
    context.done(f"Removed {', '.join(args.permissions)} from group {args.name}", group)


def _user_arguments(parser: Parser) -> None:
    _name(parser)
    parser.argument("usernames", nargs="+", metavar="USER", live="user", help="the users")
    parser.argument("--virtual-machine", metavar="NAME", live="vm", help="for this virtual machine only")


def _add_user(context: Context) -> None:
    args = context.args
    group = context.client.groups.add_users(args.name, tuple(args.usernames), args.virtual_machine)
    context.done(f"Added {', '.join(args.usernames)} to group {args.name}", group)


def _remove_user(context: Context) -> None:
    args = context.args
    group = context.client.groups.remove_users(args.name, tuple(args.usernames), args.virtual_machine)
    context.done(f"Removed {', '.join(args.usernames)} from group {args.name}", group)


COMMANDS = {
    "group": Group(
        "Groups: permissions that several users have together",
        {
            "list": Command("List all groups", _list, examples=("mcvirt group list",)),
            "create": Command(
                "Create a group", _create, _create_arguments, examples=("mcvirt group create operators",)
            ),
            "delete": Command(
                "Delete a group that has no members", _delete, _name, examples=("mcvirt group delete operators",)
            ),
            "add-permission": Command(
                "Add permissions to a group",
                _add_permission,
                _permission_arguments,
                examples=("mcvirt group add-permission operators MIGRATE_VM SET_VM_LOCK",),
            ),
            "remove-permission": Command(
                "Take permissions from a group",
                _remove_permission,
                _permission_arguments,
                examples=("mcvirt group remove-permission operators SET_VM_LOCK",),
            ),
            "add-user": Command(
                "Put users into a group, everywhere or on one virtual machine",
                _add_user,
                _user_arguments,
                examples=(
                    "mcvirt group add-user operators alice bob",
                    "mcvirt group add-user owner alice --virtual-machine web1",
                ),
            ),
            "remove-user": Command(
                "Take users out of a group",
                _remove_user,
                _user_arguments,
                examples=("mcvirt group remove-user operators bob",),
            ),
        },
    )
}
