"""mcvirtd that does every few seconds what is otherwise done every hour."""

from __future__ import annotations

import sys

import mcvirtd.daemon
from mcvirtd.main import main

if __name__ == "__main__":
    mcvirtd.daemon._HOUR = 2.0
    sys.exit(main())
