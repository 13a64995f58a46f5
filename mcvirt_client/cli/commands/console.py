"""console: the serial console of a virtual machine on this terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mcvirt.errors import McvirtError
from mcvirt_client.cli.commands.machine import vm_name
from mcvirt_client.cli.output import clean
from mcvirt_client.cli.parser import Command, Parser
from mcvirt_client.cli.report import UsageError

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Context
    from mcvirt_client.client import Client

LEAVE = b"\x1d"  # ctrl-]
PIECE = 4096


def _arguments(parser: Parser) -> None:
    vm_name(parser)
    parser.add_argument("--log", action="store_true", help="print what the guest wrote since its start, and end")
    parser.add_argument("--tail", type=int, default=65536, metavar="BYTES", help="with --log: the last so many (65536)")


def _console(context: Context) -> None:
    args = context.args
    if args.log:
        chunk = context.client.vms.console_log(args.vm_name, args.tail)
        if context.out.json:
            context.out.value({"name": args.vm_name, "log": chunk.data.decode("utf-8", "replace")}, str)
        elif sys.stdout.isatty():
            # Escape sequences of the guest have no business on the terminal of who only reads its log.
            text = chunk.data.decode("utf-8", "replace").replace("\r\n", "\n")
            context.out.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))
        else:
            context.out.stdout.flush()
            sys.stdout.buffer.write(chunk.data)
        return
    if args.json:
        raise UsageError("A console can't be printed as JSON; its log can: `mcvirt console --log`.", "")
    _attach(context, args.vm_name)


def _attach(context: Context, name: str) -> None:
    client = context.client
    console = client.vms.console_open(name)
    try:
        with _Raw():
            # Said once every key goes to the guest: who reads it may type at once.
            if sys.stdin.isatty() and not context.args.quiet:
                context.out.stderr.write(f"Connected to the serial console of {clean(name)}. Ctrl-] leaves it.\r\n")
                context.out.stderr.flush()
            _Session(client, name, console).run()
    finally:
        try:
            client.vms.console_close(name, console)
        except McvirtError:
            pass  # it closes by itself
    if sys.stdin.isatty():
        context.out.say("")


class _Raw:
    """The terminal in raw mode: every key goes to the guest, Ctrl-C too."""

    def __enter__(self) -> None:
        self._before = None
        if sys.stdin.isatty():
            import termios
            import tty

            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)  # what was typed ahead is for the guest

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


class _Session:
    """Two connections: one waits for what the guest writes, the other carries what is typed."""

    def __init__(self, client: Client, name: str, console: str) -> None:
        self._typing = client
        self._reading = client.another()
        self._name = name
        self._console = console
        self._error: McvirtError | None = None
        self._ended_r, self._ended_w = os.pipe()

    def run(self) -> None:
        """Until ctrl-], or until the console is closed on the other side."""
        import select
        import threading

        reader = threading.Thread(target=self._read, name="console", daemon=True)
        reader.start()
        stdin = sys.stdin.fileno()
        waiting = [stdin, self._ended_r]
        while True:
            ready = select.select(waiting, [], [])[0]
            if self._ended_r in ready:
                break
            data = os.read(stdin, PIECE)
            if not data:
                waiting = [self._ended_r]  # what was piped in is typed; the guest may still have something to say
                continue
            before, leave, _ = data.partition(LEAVE)
            if before:
                self._typing.vms.console_write(self._name, self._console, before)
            if leave:
                return
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        out = sys.stdout.buffer
        try:
            while True:
                chunk = self._reading.vms.console_read(self._name, self._console)
                if chunk.data:
                    out.write(chunk.data)
                    out.flush()
                if not chunk.open:
                    return
        except McvirtError as error:
            self._error = error
        except OSError:
            pass  # nobody reads our stdout any more
        finally:
            os.write(self._ended_w, b".")


COMMANDS = {
    "console": Command(
        "Use the serial console of a virtual machine",
        _console,
        _arguments,
        description="Every key goes to the guest, except Ctrl-], which leaves. A console that somebody else "
        "has open is taken over from them.",
        examples=("mcvirt console web1", "mcvirt console web1 --log", "mcvirt console web1 --log --tail 4096"),
    )
}
