"""One command's parser at a time: global flags, argument types, help with examples."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from mcvirt_client.cli import catalog
from mcvirt_client.cli.output import terminal_width
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mcvirt_client.cli.context import Context


# Help is in English: looking for translations of argparse's own words would only take time, at every start.
argparse._ = str  # type: ignore[attr-defined]


class Command:
    """A command or a sub-command: what it runs, its arguments, and examples that a test parses."""

    def __init__(
        self,
        help: str,
        run: Callable[[Context], int | None],
        arguments: Callable[[Parser], None] | None = None,
        *,
        examples: tuple[str, ...],
        description: str = "",
        alias_of: str = "",
    ) -> None:
        self.help = help
        self.run = run
        self.arguments = arguments
        self.examples = examples
        self.description = description
        self.alias_of = alias_of


class Group:
    """A command that is a noun, with verbs below it; *bare* is what it does without a verb."""

    def __init__(self, help: str, commands: Mapping[str, Command], bare: Command | None = None) -> None:
        self.help = help
        self.commands = commands
        self.bare = bare


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, and whose arguments can complete live names.

    *intermixed*: flags may stand between the words of the command also where a word may be left out.
    """

    intermixed = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does."""
        return (self.parse_intermixed_args if self.intermixed else super().parse_args)(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}.", f"`{self.prog} --help` explains.")

    def own_usage(self) -> str:
        """The usage without the flags that every command takes."""
        own = [action for action in self._actions if action.dest not in GLOBAL_DESTS]
        return self._get_formatter()._format_usage(None, own, self._mutually_exclusive_groups, "").strip()

    def format_help(self) -> str:
        """The help; its usage leaves the global flags to their own list."""
        # A percent sign would be taken for a field to be filled in.
        self.usage = self.own_usage().replace("%", "%%") + " [global flags]"
        return super().format_help()

    def argument(self, *names: str, live: str | None = None, **kwargs: Any) -> argparse.Action:
        """add_argument; *live* names what the completion offers (see mcvirt_client.cli.live)."""
        action = self.add_argument(*names, **kwargs)
        complete(action, live)
        return action


def complete(action: argparse.Action, live: str | None) -> None:
    """Let the completion offer names of the kind *live* for *action*."""
    if live is not None:
        action.live = live  # type: ignore[attr-defined]


GLOBAL_DESTS = frozenset(
    {
        *("help", "json", "quiet", "yes", "no_wait", "timeout", "host", "ca_file", "username", "password"),
        *("password_file", "cache_credentials", "ignore_failed_nodes", "accept_failed_nodes_warning", "ignore_drbd"),
    }
)
GLOBAL_HELP = "Global flags, before or after the command's name"


def add_globals(parser: Parser) -> None:
    """The flags that every command takes."""
    from_here = parser.add_argument_group(GLOBAL_HELP)
    add = from_here.add_argument
    add("--json", action="store_true", default=False, help="print JSON, with exact values")
    add("--quiet", action="store_true", default=False, help="print no messages and no progress")
    add("--yes", action="store_true", default=False, help="answer every question with yes")
    add("--no-wait", action="store_true", default=False, help="print the ID of the task and do not wait for it")
    add(
        "--timeout", type=duration, metavar="SECONDS", help="how long to wait for the task, which then goes on (90, 5m)"
    )
    complete(
        add("--host", metavar="NAME[:PORT]", help="the node to talk to, instead of the one on this machine"), "node"
    )
    add("--ca-file", metavar="PATH", help="the CA certificate to trust with --host")
    add("--username", "-U", metavar="NAME", help="log in as this user")
    add("--password", metavar="PASSWORD", help="the password; others see it in the list of processes, so rather use:")
    add("--password-file", metavar="PATH", help="read the password from the first line of a file")
    add("--cache-credentials", action="store_true", default=False, help="keep the session in ~/.mcvirt-auth")
    add("--ignore-failed-nodes", action="store_true", default=False, help="go on without nodes that do not answer")
    add("--accept-failed-nodes-warning", action="store_true", default=False, help="and do not ask before")
    add("--ignore-drbd", action="store_true", default=False, help="go on although DRBD warns")


def duration(text: str) -> float:
    """A --timeout; raises BadArgument."""
    from mcvirt.units import parse_duration

    return float(parse_duration(text, what="timeout"))


def memory(text: str) -> int:
    """Bytes of memory; raises BadArgument."""
    from mcvirt.units import parse_size

    return parse_size(text, what="memory")


def disk_size(text: str) -> int:
    """Bytes of a disk; raises BadArgument."""
    from mcvirt.units import parse_size

    return parse_size(text, what="disk size")


def rate(text: str) -> int:
    """Bytes a second; raises BadArgument."""
    from mcvirt.units import parse_size

    return parse_size(text, what="bandwidth")


def upper(text: str) -> str:
    """Permissions and drivers may be typed in any case."""
    return text.upper()


def lower(text: str) -> str:
    """Graphics drivers may be typed in any case."""
    return text.lower()


def capital(text: str) -> str:
    """Local, Drbd, Lvm and File may be typed in any case."""
    return text.capitalize()


def load(name: str) -> Command | Group:
    """The command *name* of the catalog."""
    import importlib

    module = importlib.import_module(f"mcvirt_client.cli.commands.{catalog.COMMANDS[name][0]}")
    found: Command | Group = module.COMMANDS[name]
    return found


def build(path: str, command: Command) -> Parser:
    """The parser of *command*, which is called *path*, such as "network create"."""
    parser = Parser(
        prog=f"mcvirt {path}",
        description=(command.help + ". " + command.description).strip(),
        epilog="Examples:\n" + "\n".join(f"  {example}" for example in command.examples),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    if command.arguments is not None:
        command.arguments(parser)
    add_globals(parser)
    return parser


class HelpFormatter(argparse.HelpFormatter):
    """Help that wraps descriptions and keeps examples as they are."""

    def __init__(self, prog: str) -> None:
        # argparse makes a formatter for each argument that is added, and each would ask for the terminal's size by
        # way of shutil, which is slow to import.
        super().__init__(prog, width=min(100, terminal_width(sys.stdout, os.environ) or 80))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("Examples:"):
            return text
        return super()._fill_text(text, width, indent)


def resolve(argv: list[str]) -> tuple[str, Command | Group, list[str]]:
    """The command that *argv* names, by its full name, and what is left for its parser; raises UsageError.

    A Group comes back where no sub-command is named.
    """
    index = catalog.next_word(argv)
    if index < 0:
        raise UsageError("No command is named.")
    name, before, rest = argv[index], argv[:index], argv[index + 1 :]
    if name not in catalog.COMMANDS:
        raise UsageError(f"There is no command '{name}'.{_like(name, catalog.COMMANDS)}")
    found = load(name)
    if isinstance(found, Command):
        return name, found, before + rest
    index = catalog.next_word(rest)
    if found.bare is not None and not _is_verb(found, rest, index):
        return name, found.bare, before + rest
    if index < 0:
        return name, found, before + rest
    verb = rest[index]
    if verb not in found.commands:
        known = ", ".join(found.commands)
        raise UsageError(f"'mcvirt {name}' has no command '{verb}', but: {known}.", f"`mcvirt {name} --help` explains.")
    return f"{name} {verb}", found.commands[verb], before + rest[:index] + rest[index + 1 :]


def _is_verb(group: Group, words: list[str], index: int) -> bool:
    """Whether the word is a verb of *group*, and not the value of a flag of what it does without one."""
    if index < 0 or words[index] not in group.commands:
        return False
    flag = words[index - 1] if index else ""
    return not flag.startswith("-") or flag.lstrip("-").replace("-", "_") in GLOBAL_DESTS


def _like(word: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def overview() -> str:
    """What `mcvirt --help` prints."""
    lines = [
        "usage: mcvirt [GLOBAL FLAGS] COMMAND [ARGUMENTS]",
        "       mcvirt                  an interactive shell",
        "       mcvirt COMMAND --help   about one command, with examples",
        "       mcvirt --version",
        "",
        "Virtual machines on a cluster of nodes.",
    ]
    areas: dict[str, list[str]] = {}
    for name, (_, area, text) in catalog.COMMANDS.items():
        areas.setdefault(area, []).append(f"  {name:<12} {text}")
    for area, commands in areas.items():
        lines += ["", f"{area}:", *commands]
    parser = Parser(prog="mcvirt", add_help=False, formatter_class=HelpFormatter)
    add_globals(parser)
    help_of_flags = parser.format_help()
    lines += ["", help_of_flags[help_of_flags.index(GLOBAL_HELP) :].rstrip()]
    lines += ["", "Exit status: 0 done; 1 failed; 2 bad usage; 3 refused, nothing changed; 4 not logged in or not"]
    lines += ["permitted; 5 node or daemon unreachable; 6 done, but a node was away and will catch up."]
    return "\n".join(lines) + "\n"


def group_help(name: str, group: Group) -> str:
    """What `mcvirt NOUN --help` prints."""
    lines = [f"usage: mcvirt {name} COMMAND [ARGUMENTS]", "", f"{group.help}.", "", "Commands:"]
    lines += [f"  {verb:<20} {command.help}" for verb, command in group.commands.items()]
    lines += ["", "Examples:"]
    lines += [f"  {command.examples[0]}" for command in group.commands.values() if not command.alias_of]
    lines += ["", f"`mcvirt {name} COMMAND --help` tells more about one of them."]
    return "\n".join(lines) + "\n"
