"""mcvirtd, on whose simulated hypervisor no guest listens to the power button."""

from __future__ import annotations

import sys

from mcvirtd.hypervisor.simulated import SimulatedHypervisor
from mcvirtd.main import main


def _pressed(self: SimulatedHypervisor, uuid: str) -> bool:
    return self._known(uuid, "shut a domain down").active


if __name__ == "__main__":
    SimulatedHypervisor.shutdown = _pressed  # type: ignore[method-assign]
    sys.exit(main())
