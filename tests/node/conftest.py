"""Nodes for tests, one for each module, with the end of mcvirtd's log shown where a test fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.attacker import Network
from tests.node.mcvirt_node import McvirtNode


@pytest.fixture(scope="session")
def capabilities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where libvirtd keeps what it found out about QEMU, for all nodes of a run: probing takes seconds."""
    return tmp_path_factory.mktemp("capabilities")


def _started(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory, capabilities: Path, simulate: bool
) -> Iterator[McvirtNode]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces and libvirtd")
    settings = getattr(request.module, "SETTINGS", "")
    node = McvirtNode(factory.mktemp("node"), simulate=simulate, capabilities=capabilities, settings=settings)
    with node:
        yield node


@pytest.fixture(scope="module")
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, capabilities: Path
) -> Iterator[McvirtNode]:
    """A node with real libvirt; the module's SETTINGS are added to its settings."""
    yield from _started(request, tmp_path_factory, capabilities, simulate=False)


@pytest.fixture(scope="module")
def sim_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, capabilities: Path
) -> Iterator[McvirtNode]:
    """The same with simulated machines and storage, for what has nothing to do with them."""
    yield from _started(request, tmp_path_factory, capabilities, simulate=True)


@pytest.fixture(scope="module")
def network(sim_node: McvirtNode) -> Iterator[Network]:
    """Sockets in the network of *sim_node*."""
    made = Network(sim_node)
    yield made
    made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the end of the log of every node that a failed test has used."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, McvirtNode):
                report.sections.append((f"mcvirtd's log of {name}", value.log_tail(40)))
