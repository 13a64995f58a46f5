"""The second half of the demo: a blank node joins, is missed and comes back, and a running machine moves to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demo.ground import DemoFailed, Ground
from demo.steps import Shell, say, until
from tests.node import tinyguest

NOTICED_WITHIN = 30.0
CAUGHT_UP_WITHIN = 30.0
COUNTS_WITHIN = 60.0
AWAY = 6  # the exit status of a change that a node has not got because it is away


class Together:
    """The steps. Each raises DemoFailed if it does not do what it shows."""

    def __init__(self, first: Ground, second: Ground) -> None:
        self._first = first
        self._second = second
        self._here = Shell(first, "node1$")
        self._there = Shell(second, "node2$")
        self._addresses = (first.address, second.address)

    def run(self) -> None:
        """All steps."""
        self._join()
        self._share()
        self._kill()
        self._return()
        self._move()

    def _join(self) -> None:
        here, there = self._here, self._there
        for shell, address in zip((here, there), self._addresses, strict=True):
            shell.mcvirt("node", "--set-ip-address", address)
        secret = there.secret("cluster", "get-connect-string")
        here.tell(secret, "cluster", "add-node", "--connect-string", "-")
        until(lambda: self._even(2), "both nodes are in the cluster", CAUGHT_UP_WITHIN)
        here.mcvirt("info")
        there.mcvirt("info")

    def _share(self) -> None:
        here, there = self._here, self._there
        there.mcvirt("create", "web2", "--memory", "256", "--cpu-count", "1", "--network", "lan")
        here.mcvirt("list")
        there.mcvirt("list")
        here.mcvirt("user", "create", "alice", "--generate-password")
        there.mcvirt("user", "list")
        self._expect("web2", [row["name"] for row in here.ask("list")], "node1 sees the machine of node2")
        self._expect("alice", [row["name"] for row in there.ask("user", "list")], "node2 knows the user")

    def _kill(self) -> None:
        here = self._here
        say("\nThe mcvirtd of node2 is killed (SIGKILL).")
        self._second.kill_daemon()
        until(lambda: self._row("node2")["status"] == "Unreachable", "node1 misses node2", NOTICED_WITHIN)
        here.mcvirt("list")
        if any(row["age"] is None for row in here.ask("list")):
            raise DemoFailed("the list does not say that node2 is away")
        here.mcvirt("user", "create", "bob", "--generate-password", status=AWAY)
        here.mcvirt("info")

    def _return(self) -> None:
        here, there = self._here, self._there
        say("\nThe mcvirtd of node2 is started again.")
        self._second.start_daemon()
        until(lambda: self._even(2), "node2 has caught up", CAUGHT_UP_WITHIN)
        here.mcvirt("info")
        there.mcvirt("user", "list")
        self._expect("bob", [row["name"] for row in there.ask("user", "list")], "node2 has caught up")
        there.mcvirt("delete", "web2", "--yes")
        here.mcvirt("list")

    def _move(self) -> None:
        here, there = self._here, self._there
        here.mcvirt("storage", "add-node", "local", "--node", "node2", str(self._second.images))
        size = ("--memory", "64", "--cpu-count", "1", "--disk-size", "4MiB")
        here.mcvirt("create", "counter", *size, "--machine", "pc", "--network", "lan")
        volume = str(here.ask("hard-drive", "list")[0]["volume"])
        say("\nThe disk gets a guest of one sector, which counts, and writes down how far it is.")
        tinyguest.install(self._first.images / volume, 4 * 2**20)
        here.mcvirt("start", "counter")
        before = self._count(self._first.images / volume, 5)
        say(f"\nOn node1 the guest has counted to {before}. It moves, with its disk, and goes on counting.")
        there.mcvirt("migrate", "counter", "--node", "node2", "--online", "--copy-storage")
        there.mcvirt("list")
        after = self._count(self._second.images / volume, before + 5)
        say(f"\nOn node2 the guest has counted to {after}.")
        if (self._first.images / volume).exists():
            raise DemoFailed("the disk is still on node1")
        there.mcvirt("stop", "counter")
        there.mcvirt("delete", "counter", "--yes")

    @staticmethod
    def _count(volume: Path, least: int) -> int:
        """How far the guest is, once it is that far and has booted just once."""

        def far() -> bool:
            found = tinyguest.progress(volume)
            return found is not None and found[0] == 1 and found[1] >= least

        until(far, f"the guest counts to {least}", COUNTS_WITHIN)
        found = tinyguest.progress(volume)
        return 0 if found is None else found[1]

    def _row(self, name: str) -> dict[str, Any]:
        return next(row for row in self._here.ask("info") if row["name"] == name)

    def _even(self, count: int) -> bool:
        """Whether each of that many nodes sees all of them, none of which lags."""
        views = [shell.ask("info") for shell in (self._here, self._there)]
        rows = [row for view in views for row in view]
        return (
            all(len(view) == count for view in views)
            and all(row["status"] != "Unreachable" and row["lag"] == 0 for row in rows)
            and len({row["revision"] for row in rows}) == 1
        )

    @staticmethod
    def _expect(name: str, found: list[str], what: str) -> None:
        if name not in found:
            raise DemoFailed(f"{what}: there is no '{name}' among {found}")
