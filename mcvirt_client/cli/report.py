"""The one place where errors become a sentence on stderr and an exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mcvirt.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, Failed, McvirtError
from mcvirt_client.cli.output import RED, clean, paint

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class UsageError(Exception):
    """Words that make no command; *hint* says where to read on."""

    def __init__(self, text: str, hint: str = "`mcvirt --help` shows the commands.") -> None:
        super().__init__(text)
        self.hint = hint


class Declined(Exception):
    """Somebody was asked, and did not say yes."""


class Stop(Exception):
    """The command is over, with this exit status, and everything is said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def after_changes(error: Exception) -> Exception:
    """*error* as it is to be raised by a command that has changed something already: status 3 would deny that."""
    refused = isinstance(error, McvirtError) and error.exit_code == EXIT_REFUSED
    return Failed(text=str(error)) if refused else error


def guarded(work: Callable[[], int | None]) -> int:
    """The exit status of *work*; whatever it raises is said in a sentence, and a traceback shown to who debugs."""
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except Stop as stop:
        return stop.status
    except SystemExit as leaving:  # argparse's --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except UsageError as error:
        return _said(f"{error} {error.hint}".rstrip(), EXIT_USAGE)
    except McvirtError as error:
        return _said(str(error), error.exit_code)
    except Declined:
        return _said("Nothing was changed.", EXIT_REFUSED, prefix="")
    except KeyboardInterrupt:
        return _said("Interrupted.", EXIT_INTERRUPTED, prefix="")
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_PIPE
    except OSError as error:
        if _is_output(error):
            _drop_stdout()
        where = f" ({error.filename})" if error.filename else ""
        return _said(f"{error.strerror or error}{where}.", EXIT_FAILED)
    except Exception as error:
        return _said(
            f"mcvirt itself failed: {type(error).__name__}: {error}. Set MCVIRT_DEBUG=1 to see where.", EXIT_FAILED
        )


def _said(text: str, status: int, prefix: str = "Error: ") -> int:
    stderr = sys.stderr
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()
    if os.environ.get("MCVIRT_DEBUG"):
        import traceback

        traceback.print_exc()
    try:
        if prefix and stderr.isatty() and not os.environ.get("NO_COLOR"):
            prefix = paint("Error:", RED) + " "
        stderr.write(prefix + clean(text) + "\n")
        stderr.flush()
    except OSError:
        pass
    return status


def _is_output(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EIO) and error.filename is None


def _drop_stdout() -> None:
    # What is still in the buffer can't be written; Python would try it again at its end, and complain.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
