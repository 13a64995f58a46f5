"""mcvirtd, in which a configuration of a few kilobytes goes from node to node in many parts; it logs each of them."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

from mcvirtd.cluster.newcomer import Newcomer
from mcvirtd.main import main
from mcvirtd.state import log, parts
from mcvirtd.state.replicate import Replica

SIZE = 500
KEPT = 20


def _logged(cls: type, name: str, text: str) -> None:
    method = getattr(cls, name)

    @functools.wraps(method)
    def logging_it(self: Any, *args: Any, **kwargs: Any) -> Any:
        logging.getLogger(__name__).info(text)
        return method(self, *args, **kwargs)

    setattr(cls, name, logging_it)


if __name__ == "__main__":
    parts.SIZE = SIZE
    log.KEPT_ENTRIES = KEPT
    _logged(Newcomer, "hand_over", "a part for a newcomer")
    _logged(parts.Offered, "part", "a part of a snapshot")
    _logged(Replica, "_on_entries", "a part of a backlog")
    sys.exit(main())
