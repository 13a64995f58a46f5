from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.tasks.workshop import Workshop


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.close()
