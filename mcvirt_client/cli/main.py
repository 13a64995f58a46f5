"""The mcvirt command."""

from __future__ import annotations

import gc
import os
import sys

# What not every command needs is imported late: the start of this program is most of what `mcvirt list` takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcvirt_client.cli.context import Session

HELP = frozenset({"--help", "-h"})


def main() -> None:
    """Run the command that the words of this process name, and end the process with its exit status."""
    _open_what_is_closed()
    gc.disable()  # one short command makes no cycles worth looking for; the shell turns it on again
    if "_ARGCOMPLETE" in os.environ:
        from mcvirt_client.cli.completion import answer

        status = answer()
    else:
        skip_typing_extensions()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    # Sockets and files are the kernel's to close; taking the interpreter apart would only take time.
    os._exit(status)


def _open_what_is_closed() -> None:
    # Started with a descriptor closed, Python has None there; and a socket of ours would get that number, and with it
    # whatever is printed. In this order each gets its own number back.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open until the end


def skip_typing_extensions() -> None:
    """Import msgspec without typing_extensions, which it takes where it is installed, and typing otherwise.

    To import both takes about as long as a call to the daemon.
    """
    if "typing_extensions" not in sys.modules and "msgspec" not in sys.modules:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        import msgspec  # noqa: F401

        del sys.modules["typing_extensions"]


def run(argv: list[str], session: Session | None = None) -> int:
    """The exit status of `mcvirt` with these words."""
    from mcvirt_client.cli.report import guarded

    return guarded(lambda: _run(argv, session))


def _run(argv: list[str], session: Session | None) -> int | None:
    from mcvirt_client.cli.context import Session

    session = session or Session()
    try:
        return dispatch(argv, session)
    finally:
        session.close()


def dispatch(argv: list[str], session: Session) -> int | None:
    """Run one command, or the shell if none is named; raises what goes wrong."""
    from mcvirt_client.cli.catalog import next_word

    index = next_word(argv)
    if index < 0:
        if HELP & set(argv):
            return _print_overview()
        if "--version" in argv:
            return _print_version()
        from mcvirt_client.cli.shell import shell

        return shell(argv, session)
    if argv[index] == "help":
        argv = [*argv[index + 1 :], "--help"]
        if len(argv) == 1:
            return _print_overview()
    from mcvirt_client.cli import parser
    from mcvirt_client.cli.report import UsageError

    path, command, rest = parser.resolve(argv)
    if isinstance(command, parser.Group):
        if HELP & set(rest):
            sys.stdout.write(parser.group_help(path, command))
            return 0
        raise UsageError(f"'mcvirt {path}' needs a command: {', '.join(command.commands)}.", "")
    return _run_command(path, command, rest, session)


def _run_command(path: str, command: object, rest: list[str], session: Session) -> int | None:
    from mcvirt_client.cli import parser
    from mcvirt_client.cli.context import Context
    from mcvirt_client.cli.output import Output

    assert isinstance(command, parser.Command)
    args = parser.build(path, command).parse_args(rest)
    context = Context(args, Output(json=args.json, quiet=args.quiet), session)
    context.ask_about_failed_nodes()
    try:
        return context.concluded(command.run(context))
    except Exception as error:
        from mcvirt.errors import SessionRefused
        from mcvirt_client.tasks import Detached

        if isinstance(error, Detached):
            return context.detached(error)
        if isinstance(error, SessionRefused):
            session.forget(args)  # so that the next line of a shell logs in anew
        raise


def _print_overview() -> int:
    from mcvirt_client.cli.parser import overview

    sys.stdout.write(overview())
    return 0


def _print_version() -> int:
    from mcvirt import __version__

    sys.stdout.write(f"mcvirt {__version__}\n")
    return 0
