"""The manual page mcvirt(1), made from the commands' own parsers.

`python -m mcvirt_client.cli.manpage DIRECTORY` writes mcvirt.1 there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mcvirt import __version__
from mcvirt_client.cli import catalog, parser

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
.SH DESCRIPTION
.B mcvirt
manages virtual machines on a cluster of nodes. It talks to
.BR mcvirtd (8)
on this machine, or on the one that
.B \\-\\-host
names. Without a command it is an interactive shell: one command a line, with quotes as in sh, until
.B exit
or the end of the input.
.PP
Data is printed to the standard output, and everything said to a person to the standard error; progress is shown as a
bar on a terminal, and as a line a step otherwise. Tables fit the terminal, and are as wide as they need to be in files
and pipes. With
.B \\-\\-json
everything is printed as JSON, with exact values: sizes in bytes, times in UTC.
.PP
What takes a while is a task of the daemon. It goes on when
.B mcvirt
is ended or loses its connection; Ctrl\\-C asks whether to leave the task alone or to cancel it, and leaves it
alone where there is nobody to ask.
.SH LOGGING IN
Root on a node needs no login. Others name a user with
.B \\-\\-username
and are asked for the password, or keep a session with
.BR "mcvirt login" .
Passwords are better read from a terminal, a file
.RB ( \\-\\-password\\-file )
or the environment than given as an argument, where other users can see them.
.SH SIZES
A number alone means MiB. The units are B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024),
in any case.
"""

ENDING = """\
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
It failed; the message says what was undone and what remains.
.TP
.B 2
Bad usage.
.TP
.B 3
Refused, and nothing was changed.
.TP
.B 4
Not logged in, or not permitted.
.TP
.B 5
A node or a daemon can't be reached.
.TP
.B 6
Done, but a node was away and will catch up.
.TP
.B 130
Interrupted by Ctrl\\-C. A task goes on.
.SH FILES
.TP
.I /run/mcvirt/endpoint.json
Where the daemon of this machine listens.
.TP
.I /run/mcvirt/ca.pem
The certificate of the cluster's CA. Copy it to
.I ~/.config/mcvirt/ca.pem
on machines that use
.BR \\-\\-host .
.TP
.I /run/mcvirt/root.token
What root on the node is known by. Only root can read it.
.TP
.I ~/.mcvirt-auth
Sessions that are kept, with mode 0600. It is not used if others can read it. It holds no passwords.
.SH ENVIRONMENT
.TP
.B MCVIRT_RUN_DIR
Another directory than
.IR /run/mcvirt .
.TP
.B MCVIRT_CA_FILE
The CA certificate to trust with
.BR \\-\\-host .
.TP
.B MCVIRT_PASSWORD
The password for
.BR \\-\\-username .
.TP
.B MCVIRT_DEBUG
If set, errors come with a traceback.
.TP
.B NO_COLOR
If set, there is no colour.
.TP
.B COLUMNS
The width of the terminal, if it should be another than it is.
.SH SEE ALSO
.BR mcvirtd (8),
.BR virsh (1)
"""


def roff(text: str) -> str:
    """*text* with everything escaped that means something to roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = escaped.replace("~", "\\(ti").replace("^", "\\(ha")
    return "\\&" + escaped if escaped.startswith(".") else escaped


def page() -> str:
    """The whole manual page."""
    # No date: the page is the same whenever it is made, from the same version.
    lines = [f'.TH MCVIRT 1 "" "mcvirt {__version__}" "User Commands"', ".nh", ".SH NAME"]
    lines += ["mcvirt \\- manage virtual machines on a cluster of nodes", ".SH SYNOPSIS", ".B mcvirt"]
    lines += [".RI [ global\\ flags ]"]
    lines += [".I command", ".RI [ arguments ]", ".br", ".B mcvirt", INTRODUCTION.rstrip(), ".SH GLOBAL FLAGS"]
    flags = parser.Parser(prog="mcvirt", add_help=False, formatter_class=parser.HelpFormatter)
    parser.add_globals(flags)
    for action in flags._actions:
        lines += _argument(flags, action)
    for area in dict.fromkeys(area for _, area, _ in catalog.COMMANDS.values()):
        lines.append(f".SH {roff(area).upper()}")
        for name, (_, of_area, _) in catalog.COMMANDS.items():
            if of_area == area:
                lines += _commands(name)
    return "\n".join(lines) + "\n" + ENDING


def every_command() -> Iterator[tuple[str, parser.Command]]:
    """All commands by their full names, such as "network create"."""
    for name in catalog.COMMANDS:
        found = parser.load(name)
        if isinstance(found, parser.Command):
            yield name, found
        else:
            if found.bare is not None:
                yield name, found.bare
            for verb, command in found.commands.items():
                yield f"{name} {verb}", command


def _commands(name: str) -> Iterator[str]:
    for path, command in every_command():
        if path != name and not path.startswith(name + " "):
            continue
        made = parser.build(path, command)
        own = [
            action
            for action in made._actions
            if action.dest not in parser.GLOBAL_DESTS and action.help != argparse.SUPPRESS
        ]
        yield f".SS mcvirt {roff(path)}"
        synopsis = " ".join(made.own_usage().split()).removeprefix(made.prog).strip()
        yield f".B mcvirt {roff(path)}"
        if synopsis:
            yield roff(synopsis)
        yield ".PP"
        yield roff(f"{command.help}. {command.description}".strip())
        for action in own:
            yield from _argument(made, action)
        yield from (".PP", "Examples:", ".PP", ".RS", ".nf")
        yield from (roff(example) for example in command.examples)
        yield from (".fi", ".RE")


def _argument(made: parser.Parser, action: argparse.Action) -> Iterator[str]:
    if action.help == argparse.SUPPRESS:
        return
    value = ""
    if action.nargs != 0:
        value = made._get_formatter()._format_args(
            action, action.dest.upper() if action.option_strings else action.dest
        )
    yield ".TP"
    if action.option_strings:
        names = ", ".join(f"\\fB{roff(flag)}\\fR" for flag in action.option_strings)
        yield f"{names} \\fI{roff(value)}\\fR" if value else names
    else:
        yield f"\\fI{roff(value)}\\fR"
    yield roff((action.help or "").replace("%%", "%"))


def main() -> int:
    """Write the page into the directory that is named."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m mcvirt_client.cli.manpage DIRECTORY\n")
        return 2
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "mcvirt.1").write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
