"""A lab: some nodes, each as new within seconds.

Each node boots once, settles, and is saved with its disks and memory (in the cache). From then on it is restored: disks
and memory are what was saved until they are written to, so that nothing is copied. What makes a node itself - its keys,
its random numbers, its time - it gets afterwards.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tests.lab import cache
from tests.lab import image as images
from tests.lab.cache import CACHE, LabFailed, took
from tests.lab.ground import BRIDGES, Ground, sweep
from tests.lab.machine import ACCELERATOR, CPU, CPUS, KERNEL_ARGUMENTS, LVM_DISK, MEMORY, Machine
from tests.lab.node import PATIENCE, Node
from tests.lab.system import RECIPE

RUNS = CACHE / "run"
MOST_NODES = 9
MOST_DRIFT = 5.0
FIRST_BOOT_WITHIN = 120.0 * PATIENCE


class Lab:
    """*count* nodes, node1 the first. Use it with `with`, or `start` and `close`."""

    def __init__(self, count: int, *, directory: Path | None = None, keep: bool = False) -> None:
        """With *keep* it outlives this process, until ``Lab.find(directory).close()``."""
        if not 1 <= count <= MOST_NODES:
            raise LabFailed(f"a lab has 1 to {MOST_NODES} nodes")
        self._count = count
        self.directory = directory or RUNS / f"test-{secrets.token_hex(4)}"
        self.nodes: list[Node] = []
        self._keep = keep
        self._ground: Ground | None = None

    @classmethod
    def find(cls, directory: Path) -> Lab | None:
        """The lab that runs in *directory*, if one does."""
        ground = Ground.find(directory)
        if ground is None:
            return None
        image = Path((directory / "image").read_text())
        numbers = [n for n in range(1, MOST_NODES + 1) if (directory / f"node{n}").exists()]
        lab = cls(len(numbers), directory=directory, keep=True)
        lab._ground = ground
        lab.nodes = [Node(Machine(ground, image, number)) for number in numbers]
        return lab

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, number: int) -> Node:
        """Node *number*, from 1."""
        return self.nodes[number - 1]

    @classmethod
    def prepare(cls, count: int) -> None:
        """Make what so many nodes are started from, as far as it is not in the cache, for all at the same time."""
        lab = cls(count)
        lab._begin()
        try:
            lab.each(lab._saved)
        finally:
            lab.close()

    def start(self) -> None:
        """Make what is needed, and start all nodes, as new."""
        self._begin()
        try:
            self.renew()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        image = images.image()
        RUNS.mkdir(parents=True, exist_ok=True)
        with cache.locked("run"):
            sweep(RUNS)
            self._ground = Ground.start(self.directory, keep=self._keep)
        try:
            (self.directory / "image").write_text(str(image))
            self.nodes = [Node(Machine(self._ground, image, number + 1)) for number in range(self._count)]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the nodes and all that was made for them; what is in the cache stays."""
        ground, self._ground = self._ground, None
        if ground is not None:
            ground.end()

    # --- as new -----------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Every node is as new: nothing that was done to one before is there, and mcvirtd has made itself at home."""
        begun = time.monotonic()
        self.each(self._renew)
        took(f"{len(self.nodes)} fresh node{'s' if len(self.nodes) > 1 else ''}", begun)

    def _renew(self, node: Node) -> None:
        saved = self._saved(node)
        node.power_off()
        node.machine.disks_on_top_of(saved)
        node.machine.console_path.unlink(missing_ok=True)
        node.machine.start(memory=saved / "memory", state=saved / "devices")
        node.awake()
        node.succeed("systemctl start mcvirtd")

    def _saved(self, node: Node) -> Path:
        machine = node.machine
        key = cache.digest(machine.image.name, MEMORY, CPUS, ACCELERATOR, CPU, KERNEL_ARGUMENTS, LVM_DISK, str(BRIDGES))

        def build(place: Path) -> None:
            machine.new_disks()
            machine.start(memory=place / "memory", keep_memory=True)
            node.log_in(within=FIRST_BOOT_WITHIN)
            offset = _clock_offset(node)
            node.succeed((RECIPE / "settle").read_text(), within=120)
            if abs(_clock_offset(node) - offset) > MOST_DRIFT:
                raise LabFailed(f"{node.name}: its time passes at another speed than ours")
            node.hang_up()
            machine.save(place / "devices")
            for disk in machine.disks:
                shutil.move(disk, place)

        return cache.made(f"state{machine.number}", key, build)

    def each(self, call: Callable[[Node], object], nodes: Sequence[Node] | None = None) -> None:
        """Call it for all nodes at the same time, and raise what one of them raises when all are done."""
        with ThreadPoolExecutor(MOST_NODES) as pool:
            for future in [pool.submit(call, node) for node in nodes or self.nodes]:
                future.result()

    # --- one more -----------------------------------------------------------------------------------------------------

    def grow(self) -> Node:
        """Start one more node, as new."""
        assert self._ground is not None
        node = Node(Machine(self._ground, self.nodes[0].machine.image, len(self.nodes) + 1))
        self.nodes.append(node)
        begun = time.monotonic()
        self._renew(node)
        took("one more node", begun)
        return node

    def shrink(self, count: int) -> None:
        """Take the last nodes away, so that *count* are left."""
        while len(self.nodes) > count:
            self.nodes.pop().power_off()

    # --- states between ---------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Remember disks and memory of all nodes, for ``revert``; ``renew`` forgets them. All must be on."""
        begun = time.monotonic()
        self._all_at_once(f"savevm {name}")
        took(f"saved {len(self.nodes)} nodes", begun)

    def revert(self, name: str) -> None:
        """Put all nodes back to where they were at ``save``, also those that are off.

        Connections between them live on, and all links are good.
        """
        begun = time.monotonic()
        for node in self.nodes:
            if not node.machine.is_on:
                node.machine.start(stopped=True)
        self._all_at_once(f"loadvm {name}")
        self.each(Node.plug_in)
        self.each(Node.awake)
        took(f"reverted {len(self.nodes)} nodes", begun)

    def _all_at_once(self, line: str) -> None:
        # While one goes on the others must not wait for it: connections between them would time out.
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                node.machine.ask("stop")
                stack.callback(node.machine.ask, "cont")
            self.each(lambda node: node.machine.tell(line))


def _clock_offset(node: Node) -> float:
    """How many seconds its clock is ahead of ours."""
    begun = time.time()
    said = float(node.succeed("date +%s.%N"))
    return said - (begun + time.time()) / 2
