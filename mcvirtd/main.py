"""The mcvirtd command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from mcvirt import __version__
from mcvirt.errors import EXIT_FAILED, McvirtError
from mcvirtd.settings import DEFAULT_PATH, Settings


def main(argv: list[str] | None = None) -> int:
    """Run the daemon, or check the settings and the machine; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mcvirtd", description="The MCVirt daemon: runs on every node and manages its virtual machines."
    )
    parser.add_argument("--version", action="version", version=f"mcvirtd {__version__}")
    parser.add_argument("--settings", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"default: {DEFAULT_PATH}")
    parser.add_argument(
        "--check", action="store_true", help="say everything that is wrong with the settings and the machine, and end"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="for tests of scale: hypervisor and storage in memory, nothing real"
    )
    arguments = parser.parse_args(argv)
    os.umask(0o077)
    if arguments.check:
        return _check(arguments.settings)
    try:
        return _run(arguments.settings, simulate=arguments.simulate)
    except McvirtError as error:
        print(f"mcvirtd: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"mcvirtd: {what}{error.strerror or error}. `mcvirtd --check` looks further.", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED


def _run(path: Path, *, simulate: bool) -> int:
    from mcvirtd import settings

    found = settings.load(path)
    _log(found)
    from mcvirtd.daemon import Daemon

    return Daemon(found, simulate=simulate).run()


def _log(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log.level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )


def _check(path: Path) -> int:
    from mcvirtd.auth.first_start import frozen_name
    from mcvirtd.check import check, check_file

    settings, findings = check_file(path)
    if settings is not None:
        findings += check(settings, frozen_name=frozen_name(settings.paths.state), libvirt=_probe)
    for finding in findings:
        print(f"{finding.severity}: {finding.text}\n    {finding.fix}")  # noqa: T201
    if any(finding.severity == "error" for finding in findings):
        return EXIT_FAILED
    print("mcvirtd can run here." if not findings else "mcvirtd can run here, with the warnings above.")  # noqa: T201
    return 0


def _probe(uri: str) -> None:
    """Raise LibvirtUnreachable, with its reason, unless libvirt answers."""
    from mcvirtd.hypervisor.libvirt import Hypervisor

    hypervisor = Hypervisor(uri, "this machine")
    try:
        hypervisor.connect(10.0)
        hypervisor.facts()
    finally:
        hypervisor.close()


if __name__ == "__main__":
    sys.exit(main())
