"""mcvirtd on a disk that takes its time: `python -m tests.bench.slow_disk_daemon`.

Each commit takes COMMIT seconds longer, and no processor: what many nodes wait for at the same time then shows on a
machine that has to be the processors of all of them.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from mcvirtd.main import main
from mcvirtd.state.store import Store

COMMIT = 0.005


def _slow_down() -> None:
    write = Store._write

    def slow(self: Store, *args: Any, **kwargs: Any) -> None:
        time.sleep(COMMIT)
        write(self, *args, **kwargs)

    Store._write = slow  # type: ignore[method-assign]


if __name__ == "__main__":
    _slow_down()
    sys.exit(main())
