"""mcvirtd of another version: the one that the file `version` beside its settings names, if there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import mcvirt

_NAMED = Path(sys.argv[sys.argv.index("--settings") + 1]).parent / "version"
if _NAMED.exists():
    mcvirt.__version__ = _NAMED.read_text()

from mcvirtd.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
