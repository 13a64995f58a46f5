"""What one command gets: its arguments, a client, and somewhere to print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mcvirt.errors import EXIT_NODE_AWAY
from mcvirt_client.cli.report import EXIT_INTERRUPTED, Declined, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mcvirt.types.task import TaskInfo
    from mcvirt_client.cli.output import Output
    from mcvirt_client.cli.progress import Bars
    from mcvirt_client.client import Client
    from mcvirt_client.tasks import Detached


Key = tuple[str | None, str | None, str | None, bool, bool]


def _key(args: argparse.Namespace) -> Key:
    return args.host, args.ca_file, args.username, args.ignore_failed_nodes, args.ignore_drbd


class Session:
    """The clients of this process, so that the lines of an interactive shell share their login."""

    def __init__(self, connect: Callable[[argparse.Namespace, Output], Client] | None = None) -> None:
        """*connect* makes a client for global flags; mcvirt_client.cli.login does if it is None."""
        self._clients: dict[Key, Client] = {}
        self._connect = connect

    def client(self, args: argparse.Namespace, out: Output) -> Client:
        """The client for what the global flags name."""
        key = _key(args)
        if key not in self._clients:
            if self._connect is None:
                from mcvirt_client.cli.login import connect

                self._connect = connect
            self._clients[key] = self._connect(args, out)
        return self._clients[key]

    def away(self, args: argparse.Namespace) -> set[str]:
        """The nodes without which the last command has made changes."""
        client = self._clients.get(_key(args))
        return client.away if client is not None else set()

    def forget(self, args: argparse.Namespace) -> None:
        """Close the client for what the global flags name."""
        client = self._clients.pop(_key(args), None)
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close all clients."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()


class Context:
    """One command at work."""

    def __init__(self, args: argparse.Namespace, out: Output, session: Session) -> None:
        self.args = args
        self.out = out
        self.session = session
        self._bars: Bars | None = None

    @property
    def client(self) -> Client:
        """The client for this command; tasks are followed as its flags say."""
        client = self.session.client(self.args, self.out)
        follower = client.follower
        follower.wait = not self.args.no_wait
        follower.timeout = self.args.timeout
        follower.progress = None if self.args.quiet else self._show
        follower.interrupted = self._interrupted
        return client

    def _show(self, info: TaskInfo) -> None:
        if self._bars is None:
            from mcvirt_client.cli.progress import Bars

            self._bars = Bars(self.out)
        self._bars(info)

    def _interrupted(self, task: str) -> None:
        from mcvirt_client.cli.progress import choose_on_interrupt

        choose_on_interrupt(self.client, task, self.out)

    def done(self, sentence: str, value: Any) -> None:
        """Say that something is done; with --json print *value* instead."""
        if self.out.json:
            self.out.value(value, str)
        elif sentence:
            self.out.say(sentence)

    def ask(self, question: str) -> bool:
        """Whether somebody at a terminal answers yes; anything else is no."""
        self.out.stderr.write(question + " [y/N] ")
        self.out.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def answer(self, question: str) -> str:
        """What somebody at a terminal answers."""
        self.out.stderr.write(question)
        self.out.stderr.flush()
        return sys.stdin.readline().strip()

    @property
    def interactive(self) -> bool:
        """Whether there is somebody to ask."""
        return sys.stdin is not None and sys.stdin.isatty() and self.out.stderr.isatty()

    def confirm(self, question: str) -> None:
        """Return if the answer is yes, or where there is nobody to ask; raise Declined otherwise."""
        if self.args.yes or not self.interactive:
            return
        if not self.ask(question):
            raise Declined

    def detached(self, detached: Detached) -> int:
        """Say which task goes on without anybody waiting for it; returns the exit status."""
        task = detached.ref.task
        if detached.asked:
            self.out.value(detached.ref, lambda: task + "\n")
            return 0
        self.out.warn(
            f"Task {task} goes on. `mcvirt task watch {task}` waits for it, `mcvirt task cancel {task}` ends it."
        )
        return EXIT_INTERRUPTED

    def concluded(self, status: int | None) -> int | None:
        """The exit status of a command that ended with *status*: another one if nodes were away, which is said."""
        away = self.session.away(self.args)
        if not away:
            return status
        names = ", ".join(f"'{name}'" for name in sorted(away))
        away.clear()
        several = "Nodes {} are away and have not got this; they take it over when they are back."
        one = "Node {} is away and has not got this; it takes it over when it is back."
        self.out.warn((several if "," in names else one).format(names))
        return status or EXIT_NODE_AWAY

    def ask_about_failed_nodes(self) -> None:
        """Have the daemon pass over what --ignore-failed-nodes and --ignore-drbd say; Declined if they think better."""
        args = self.args
        failed = self._failed_nodes() if args.ignore_failed_nodes else []
        if failed or args.ignore_drbd:
            self.client.go_on(without=failed, ignore_drbd=args.ignore_drbd)

    def _failed_nodes(self) -> list[str]:
        args = self.args
        nodes = self.client.nodes.list()
        failed = [node.name for node in nodes if node.status == "Unreachable"]
        if not failed or args.accept_failed_nodes_warning or args.yes:
            return failed
        self.out.warn(
            f"Warning: these nodes do not answer: {', '.join(failed)}. Their part is done when they are back; what is "
            "changed meanwhile can contradict what happens there."
        )
        for node in nodes:
            if node.leader and node.name in failed:
                self.out.warn(
                    f"Node {node.name} leads the cluster. If something is to be changed, another node takes its place: "
                    f"make sure that {node.name} is off."
                )
        if not self.interactive:
            raise UsageError("To go on without nodes needs --accept-failed-nodes-warning here.", "Nobody can be asked.")
        if self.answer("Go on without them? Type yes: ") != "yes":
            raise Declined
        return failed
