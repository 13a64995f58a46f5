from __future__ import annotations

import os
import pty
import select
import termios

from mcvirt_client.cli.commands.console import _Raw


def test_what_is_typed_ahead_reaches_the_guest_and_the_terminal_is_put_back(monkeypatch):
    operator, terminal = pty.openpty()
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        os.write(operator, b"ls\x1d")
        with _Raw():
            assert select.select([terminal], [], [], 5.0)[0]
            assert os.read(terminal, 100) == b"ls\x1d"
            os.write(operator, b"\x03")
            assert os.read(terminal, 100) == b"\x03"
        assert termios.tcgetattr(terminal) == before
    os.close(operator)
