"""mcvirtd whose storage takes its time, for tests: a volume of 64 MiB or more is not made before it is cancelled."""

from __future__ import annotations

import sys
import threading
from typing import Any

from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.volumes import Progress

LARGE = 64 * 1024 * 1024
_create = FileVolumes.create


def _slowly(
    self: FileVolumes,
    name: str,
    size: int,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int:
    if size >= LARGE and cancel is not None:
        (self._path(name).parent / f"{name}.part").touch()
        cancel.wait(60)
        (self._path(name).parent / f"{name}.part").unlink()
    return _create(self, name, size, progress=progress, cancel=cancel)


def main() -> int:
    """Run mcvirtd so."""
    changed: Any = FileVolumes
    changed.create = _slowly
    from mcvirtd.main import main as mcvirtd

    return mcvirtd()


if __name__ == "__main__":
    sys.exit(main())
