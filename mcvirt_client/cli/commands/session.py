"""login, logout, whoami, session and exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.parser import Command, Group, Parser
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from mcvirt.types.auth import SessionInfo, Whoami
    from mcvirt_client.cli.context import Context


def _login_arguments(parser: Parser) -> None:
    parser.add_argument("user", nargs="?", metavar="NAME", help="the user; the same as --username")


def _login(context: Context) -> None:
    from mcvirt_client.cli.login import ask_and_log_in, endpoint_of

    args = context.args
    if args.user is not None and args.username not in (None, args.user):
        raise UsageError("Two different users are named.", "")
    args.username = args.user or args.username
    endpoint = endpoint_of(args)
    ask_and_log_in(args, context.out, endpoint, keep=True)
    context.done(f"Logged in to {endpoint.key}", {"server": endpoint.key, "user": args.username})


def _logout(context: Context) -> None:
    from mcvirt.errors import McvirtError
    from mcvirt_client.cli.login import endpoint_of
    from mcvirt_client.client import Client
    from mcvirt_client.credentials import TokenCache

    endpoint = endpoint_of(context.args)
    cache = TokenCache()
    token = cache.get(endpoint.key)
    if token is None:
        context.done(f"There is no session for {endpoint.key} to end", {"server": endpoint.key, "ended": False})
        return
    cache.drop(endpoint.key)
    try:
        with Client(endpoint, token=token) as client:
            client.auth.logout()
    except McvirtError as error:
        context.out.warn(f"The session was forgotten here, but could not be ended there: {error}")
        raise
    context.done(f"Logged out of {endpoint.key}", {"server": endpoint.key, "ended": True})


def _whoami(context: Context) -> None:
    who = context.client.auth.whoami()
    context.out.value(who, lambda: _who(context, who))


def _who(context: Context, who: Whoami) -> str:
    return context.out.pairs(
        [
            ("User", who.user),
            ("Superuser", "Yes" if who.superuser else "No"),
            ("Node", who.node),
            ("Permissions", "All" if who.superuser else ", ".join(who.permissions) or "None"),
        ]
    )


def _list_arguments(parser: Parser) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--user", metavar="NAME", help="those of this user")
    whose.add_argument("--all", action="store_true", help="those of all users")


def _list(context: Context) -> None:
    sessions = context.client.auth.sessions(context.args.user, context.args.all)
    context.out.value(sessions, lambda: _table(context, sessions))


def _table(context: Context, sessions: tuple[SessionInfo, ...]) -> str:
    def local(moment: object) -> str:
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[attr-defined, no-any-return]

    return context.out.table(
        ("ID", "User", "Address", "Created", "Last used", "Expires", ""),
        [
            (s.id, s.user, s.address, local(s.created), local(s.last_used), local(s.expires), "*" if s.current else "")
            for s in sessions
        ],
    )


def _revoke_arguments(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("session", nargs="?", metavar="ID", help="the session, as `mcvirt session list` shows it")
    which.add_argument("--user", metavar="NAME", help="all sessions of this user")


def _revoke(context: Context) -> None:
    ended = context.client.auth.revoke(context.args.session, context.args.user)
    context.done(f"{ended} session{'' if ended == 1 else 's'} ended", {"ended": ended})


def _exit(_context: Context) -> None:
    from mcvirt_client.cli.shell import Leave

    raise Leave(0)


COMMANDS = {
    "login": Command(
        "Log in and keep the session for later commands",
        _login,
        _login_arguments,
        description="The session's token is kept in ~/.mcvirt-auth, which only its owner can read. The password is "
        "not kept.",
        examples=("mcvirt login alice", "mcvirt login alice --host node1 --ca-file ca.pem"),
    ),
    "logout": Command(
        "End the session that is kept", _logout, examples=("mcvirt logout", "mcvirt logout --host node1")
    ),
    "whoami": Command(
        "Show who you are to mcvirt, and what you may do everywhere", _whoami, examples=("mcvirt whoami",)
    ),
    "session": Group(
        "Sessions",
        {
            "list": Command(
                "List one's own sessions, or those of others",
                _list,
                _list_arguments,
                examples=("mcvirt session list", "mcvirt session list --all"),
            ),
            "revoke": Command(
                "End sessions",
                _revoke,
                _revoke_arguments,
                examples=("mcvirt session revoke 8473046254a0", "mcvirt session revoke --user alice"),
            ),
        },
    ),
    "exit": Command(
        "Leave the interactive shell", _exit, description="Outside of it, this does nothing.", examples=("mcvirt exit",)
    ),
}
