"""Fresh nodes for each test, what they have to say where it fails, and where the time went."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab import cache
from tests.lab.alongside import Alongside
from tests.lab.cache import HERE, ROOT, CannotRun
from tests.lab.cluster import Cluster
from tests.lab.lab import Lab
from tests.lab.node import PATIENCE, Node, save_journal

ALONGSIDE_WITHIN = 300.0 * PATIENCE
_STORIES = pytest.StashKey[dict[Path, Alongside]]()
LOGS = ROOT / "build/lab"
"""The whole journals and consoles of the nodes of tests that failed, by the test's name."""


@contextlib.contextmanager
def _or_skipped() -> Iterator[None]:
    try:
        yield
    except CannotRun as reason:
        if os.environ.get("MCVIRT_LAB_REQUIRED"):
            raise
        pytest.skip(str(reason))


_TWO = ("lab", "idle_lab", "cluster", "prepared", "moving")
_THREE = ("cluster3", "replacing")
_BY = ("idle_node", "node", *_TWO, *_THREE, "alongside_ended")
_NODES = dict.fromkeys(_TWO, 2) | dict.fromkeys((*_THREE, "blank_node"), 3)


class Labs:
    """One lab at a time, kept from test to test as long as its size is what is wanted."""

    def __init__(self, most: int) -> None:
        """*most* nodes are what a test will want."""
        self._most = most
        self._lab: Lab | None = None
        self._cluster: Cluster | None = None

    @property
    def nodes(self) -> Sequence[Node]:
        """Those there are."""
        return self._lab.nodes if self._lab is not None else ()

    def fresh(self, count: int) -> Lab:
        """Nodes that have just been installed."""
        with self._or_none():
            self._cluster = None
            if self._lab is not None and len(self._lab.nodes) == count:
                self._lab.renew()
                return self._lab
            self.close()
            if self._most > 1:
                Lab.prepare(self._most)
                self._most = 0
            lab = Lab(count)
            lab.start()
            self._lab = lab
            return lab

    def idle(self) -> Node:
        """A node as the test before has left it, which was a fresh one if that did nothing to it."""
        return (self._lab or self.fresh(1))[1]

    def idle_pair(self) -> Lab:
        """Two nodes, not joined, as the test before has left them."""
        idle = self._lab if self._cluster is None else None
        return idle if idle is not None and len(idle.nodes) == 2 else self.fresh(2)

    def joined(self) -> Cluster:
        """Two nodes that have just been joined."""
        if self._cluster is None:
            lab = self.fresh(2)
            with self._or_none():
                self._cluster = Cluster.join(lab)
        else:
            with self._or_none():
                self._cluster.lab.shrink(2)
                self._cluster.revert()
        return self._cluster

    @contextlib.contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            with _or_skipped():
                yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        lab, self._lab, self._cluster = self._lab, None, None
        if lab is not None:
            lab.close()


_LABS = pytest.StashKey[Labs]()


@pytest.fixture(scope="session")
def labs(request: pytest.FixtureRequest) -> Iterator[Labs]:
    names = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    kept = Labs(max((_NODES[name] for name in names if name in _NODES), default=1))
    request.session.stash[_LABS] = kept
    yield kept
    kept.close()


@pytest.fixture
def idle_node(labs: Labs) -> Node:
    """A node, for tests that look at one and change nothing."""
    return labs.idle()


@pytest.fixture
def node(labs: Labs) -> Node:
    """A fresh node, alone."""
    return labs.fresh(1)[1]


@pytest.fixture
def lab(labs: Labs) -> Lab:
    """Two fresh nodes that know nothing of each other."""
    return labs.fresh(2)


@pytest.fixture
def idle_lab(labs: Labs) -> Lab:
    """Two nodes that know nothing of each other, for tests that need no fresh ones."""
    return labs.idle_pair()


@pytest.fixture
def cluster(labs: Labs) -> Cluster:
    """Two nodes that have been joined, and nothing else. They are joined once, and put back there for each test."""
    return labs.joined()


@pytest.fixture
def blank_node(cluster: Cluster) -> Node:
    """A third node, fresh, beside the cluster of two."""
    return cluster.lab.grow()


@pytest.fixture
def cluster3(labs: Labs) -> Cluster:
    """Three nodes that have been joined."""
    cluster = labs.joined()
    cluster.grow()
    return cluster


@pytest.fixture
def alongside_ended(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Waits for the module's `alongside_story`, which began when the first test did, and raises what it raised."""

    def ended() -> None:
        with _or_skipped():
            request.session.stash[_STORIES][request.path].result(within=ALONGSIDE_WITHIN)

    return ended


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long stories only if they are wanted; and tests that want the same nodes follow each other, who join once."""
    if not os.environ.get("MCVIRT_LAB_LONG"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]

    def wants(item: pytest.Item) -> list[bool]:
        ours = item.path.is_relative_to(HERE)
        return [ours, *(ours and name in getattr(item, "fixturenames", ()) for name in reversed(_BY))]

    items.sort(key=wants)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add what the nodes of a failed test say, and keep all that they have said."""
    outcome: Any = yield
    report = outcome.get_result()
    if not report.failed or report.when == "teardown":
        return
    labs = item.session.stash.get(_LABS, None)
    if labs is None or not set(_BY).intersection(getattr(item, "fixturenames", ())):
        return
    # Whatever fixture has them: one that fails itself gives the test nothing to look through.
    directory = LOGS / re.sub(r"[^\w.-]+", "-", item.name)
    for found in labs.nodes:
        report.sections.append((f"{found.name} (all of it in {directory.relative_to(ROOT)})", found.evidence()))
        save_journal(found, directory)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin what goes on while other tests do, with the first test that wants nodes.

    Not before: the tests of the cache itself have it be somewhere else.
    """
    stories = item.session.stash.setdefault(_STORIES, {})
    if not set(_BY).intersection(getattr(item, "fixturenames", ())):
        return
    for each in item.session.items:
        if "alongside_ended" in getattr(each, "fixturenames", ()) and each.path not in stories:
            story = each.module.alongside_story  # type: ignore[attr-defined]
            stories[each.path] = Alongside(story, functools.partial(_evidence, LOGS / each.name))


def _evidence(directory: Path, node: Node) -> str:
    save_journal(node, directory)
    return f"{node.name} (all of it in {directory.relative_to(ROOT)})\n{node.evidence()}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The time table."""
    if cache.phases:
        terminalreporter.section("the lab's time")
        for what, seconds in cache.phases:
            terminalreporter.line(f"{seconds:7.1f} s  {what}")
