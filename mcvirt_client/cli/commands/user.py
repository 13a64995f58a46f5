"""user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser, upper

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context


def _list(context: Context) -> None:
    users = context.client.users.list()
    context.out.value(
        users,
        lambda: context.out.table(
            ("Name", "User Type", "Superuser", "Groups", "Permissions"),
            [
                (u.name, u.user_type, "Yes" if u.superuser else "", ", ".join(u.groups), ", ".join(u.permissions))
                for u in users
            ],
        ),
    )


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("new_username", metavar="NAME", help="the new user")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--user-password", metavar="PASSWORD", help="the password; others see it in the list of processes")
    how.add_argument("--user-password-file", metavar="PATH", help="read the password from the first line of a file")
    how.add_argument("--generate-password", action="store_true", help="generate a password and print it, this once")


def _create(context: Context) -> None:
    args = context.args
    password = None
    if not args.generate_password:
        password = _new_password(context, args.user_password, args.user_password_file, f"of {args.new_username}")
    made = context.client.users.create(args.new_username, password)

    def text() -> str:
        return f"{made.name}\n" + (f"{made.password}\n" if made.password is not None else "")

    context.out.value(made, text)
    if made.password is not None:
        context.out.say("This password is not shown again.")


def _new_password(context: Context, given: str | None, path: str | None, whose: str) -> str:
    from mcvirt_client.cli.login import new_password, password_from_file

    if given is not None:
        context.out.warn("Warning: other users of this machine can see a password that is given as an argument.")
        return given
    return password_from_file(path) if path is not None else new_password(whose)


def _delete_arguments(parser: Parser) -> None:
    parser.argument("delete_username", metavar="NAME", live="user", help="the user")


def _delete(context: Context) -> None:
    name = context.args.delete_username
    context.client.users.delete(name)
    context.done("Deleted user", {"deleted": name})


def _change_password_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--new-password", metavar="PASSWORD", help="the new one; others see it in the list of processes"
    )
    parser.add_argument("--new-password-file", metavar="PATH", help="read the new one from the first line of a file")
    parser.argument(
        "--target-user", metavar="NAME", live="user", help="change the password of this user, not one's own"
    )


def _change_password(context: Context) -> None:
    args = context.args
    target = args.target_user
    old = None
    if target is None:
        from mcvirt_client.cli.login import read_password

        old = read_password(args, context.out, "Your password: ")
    new = _new_password(context, args.new_password, args.new_password_file, f"of {target}" if target else "of yours")
    context.client.users.change_password(new, target, old)
    context.done("Updated password", {"updated": target})


def _permission_arguments(parser: Parser) -> None:
    parser.argument("user", metavar="USER", live="user", help="the user")
    parser.argument(
        "permissions",
        nargs="+",
        type=upper,
        metavar="PERMISSION",
        live="permission",
        help="see `mcvirt permission --list`",
    )
    parser.argument("--virtual-machine", metavar="NAME", live="vm", help="for this virtual machine only")


def _add_permission(context: Context) -> None:
    args = context.args
    user = context.client.users.add_permissions(args.user, tuple(args.permissions), args.virtual_machine)
    context.done(f"Added {', '.join(args.permissions)} to user {args.user}", user)


def _remove_permission(context: Context) -> None:
    args = context.args
    user = context.client.users.remove_permissions(args.user, tuple(args.permissions), args.virtual_machine)
    context.done(f"Removed {', '.join(args.permissions)} from user {args.user}", user)


COMMANDS = {
    "user": Group(
        "Users",
        {
            "list": Command("List all users", _list, examples=("mcvirt user list",)),
            "create": Command(
                "Create a user",
                _create,
                _create_arguments,
                description="The password is asked for, twice, if it is not given.",
                examples=("mcvirt user create alice", "mcvirt user create alice --generate-password"),
            ),
            "delete": Command("Delete a user", _delete, _delete_arguments, examples=("mcvirt user delete alice",)),
            "change-password": Command(
                "Change a password, one's own or another user's",
                _change_password,
                _change_password_arguments,
                description="All other sessions of the user end.",
                examples=("mcvirt user change-password", "mcvirt user change-password --target-user alice"),
            ),
            "add-permission": Command(
                "Give a user permissions, everywhere or on one virtual machine",
                _add_permission,
                _permission_arguments,
                examples=(
                    "mcvirt user add-permission alice CREATE_VM MODIFY_VM",
                    "mcvirt user add-permission alice MODIFY_VM --virtual-machine web1",
                ),
            ),
            "remove-permission": Command(
                "Take permissions from a user",
                _remove_permission,
                _permission_arguments,
                examples=("mcvirt user remove-permission alice CREATE_VM",),
            ),
        },
    )
}
