from __future__ import annotations

from tests.unit.vm.conftest import world

__all__ = ["world"]
