"""Completion in the operator's shell, by argcomplete's protocol.

The shell's function runs `mcvirt` with _ARGCOMPLETE=1 and the line in COMP_LINE, and reads what fits from descriptor 8.
Names of commands are answered from the catalog; for the rest argcomplete works on the parser of that one command.
`python -m mcvirt_client.cli.completion` prints the script for bash.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from mcvirt_client.cli.catalog import COMMANDS, VALUE_FLAGS, next_word

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mcvirt_client.client import Client

ANSWER_WITHIN = 2.0

SCRIPT = r"""# bash completion for mcvirt                                    -*- shell-script -*-

_mcvirt_complete() {
    local IFS=$'\013'
    COMPREPLY=($(IFS="$IFS" \
        COMP_LINE="$COMP_LINE" \
        COMP_POINT="$COMP_POINT" \
        COMP_TYPE="$COMP_TYPE" \
        _ARGCOMPLETE_COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        _ARGCOMPLETE=1 \
        _ARGCOMPLETE_SHELL=bash \
        _ARGCOMPLETE_SUPPRESS_SPACE=1 \
        "$1" 8>&1 9>/dev/null 1>/dev/null 2>&1 </dev/null))
    if [[ $? != 0 ]]; then
        unset COMPREPLY
    elif [[ "${COMPREPLY-}" =~ [=/:]$ ]]; then
        compopt -o nospace
    fi
} &&
complete -o bashdefault -F _mcvirt_complete mcvirt
"""


def answer() -> int:
    """Write the candidates to descriptor 8; the exit status. Nothing is ever said, whatever goes wrong."""
    try:
        _answer()
    except Exception:
        return 1
    return 0


def _answer() -> None:
    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="replace")
    words = line.split()  # good enough to find the command: the names of commands need no quotes
    current = "" if line[-1:].isspace() else words.pop()
    index = next_word(words, 1)
    if words and words[-1] in VALUE_FLAGS:
        index = -1 if index == len(words) else index
    if index < 0 and not (words and words[-1] in VALUE_FLAGS) and not current.startswith("-"):
        _write(name for name in COMMANDS if name.startswith(current))
        return
    from mcvirt_client.cli import parser as parsers

    if index < 0:
        empty = parsers.Command("", lambda _context: None, examples=())
        _with_argcomplete(parsers.build("", empty), 0, words)
        return
    if words[index] not in COMMANDS:
        _write(())
        return
    found = parsers.load(words[index])
    path = words[index]
    if isinstance(found, parsers.Group):
        verb = next_word(words, index + 1)
        bare = found.bare or parsers.Command("", lambda _context: None, examples=())
        if verb < 0:
            if current.startswith("-") or words[-1].startswith("-"):
                _with_argcomplete(parsers.build(path, bare), index, words)
            else:
                _write(name for name in found.commands if name.startswith(current))
            return
        if words[verb] not in found.commands:
            _write(())
            return
        found, index, path = found.commands[words[verb]], verb, f"{path} {words[verb]}"
    _with_argcomplete(parsers.build(path, found), index, words)


def _write(candidates: Any) -> None:
    chosen = list(candidates)
    if len(chosen) == 1 and os.environ.get("_ARGCOMPLETE_SUPPRESS_SPACE") != "1":
        chosen[0] += " "
    path = os.environ.get("_ARGCOMPLETE_STDOUT_FILENAME")
    with open(path or 8, "w") as stream:  # noqa: PTH123 - descriptor 8 is not a path
        stream.write(os.environ.get("_ARGCOMPLETE_IFS", "\013").join(chosen))


def _with_argcomplete(parser: argparse.ArgumentParser, index: int, words: list[str]) -> None:
    """Let argcomplete answer for *parser*, whose words begin after the word number *index*."""
    os.environ["_ARGCOMPLETE"] = str(index + 1)
    before = words[1:index]
    for action in parser._actions:
        live = getattr(action, "live", None)
        if live is not None:
            action.completer = _completer(live, before)  # type: ignore[attr-defined]
        elif action.nargs != 0 and not action.choices and action.dest not in FILES:
            action.completer = _nothing  # type: ignore[attr-defined]
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False, exit_method=_return)


def _return(_status: int) -> None:
    # argcomplete would end the process; `answer` returns instead, and main ends it.
    pass


FILES = frozenset({"ca_file", "password_file", "user_password_file", "new_password_file", "path", "iso_name"})


def _nothing(**_: Any) -> list[str]:
    return []


def _completer(kind: str, before: list[str]) -> Callable[..., list[str]]:
    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        from mcvirt_client.cli.live import names
        from mcvirt_client.cli.main import skip_typing_extensions

        try:
            skip_typing_extensions()
            client = _client(_value(before, "--host") or parsed_args.host, _value(before, "--ca-file"))
            return [name for name in names(client, kind) if name.startswith(prefix)]
        except Exception:
            return []

    return complete


def _client(host: str | None, ca_file: str | None) -> Client:
    from mcvirt_client.client import Client
    from mcvirt_client.discovery import split_host

    name, port = split_host(host) if host else (None, None)
    return Client.connect(name, port, ca_file=ca_file, call_timeout=ANSWER_WITHIN)


def _value(words: list[str], flag: str) -> str | None:
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
    return None


if __name__ == "__main__":
    sys.stdout.write(SCRIPT)
