"""What this node has another one do for the user that it works for: begun there as a task, and followed to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from mcvirt.errors import AnswerLost, BadArgument, McvirtError, NodeUnreachable, TaskCancelled, from_wire
from mcvirt.rpc.codec import Reply
from mcvirt.types.task import ENDED, TaskInfo, TaskNews, TaskState
from mcvirtd.auth.caller import Caller, current_caller
from mcvirtd.cluster.forwarding import Door
from mcvirtd.cluster.peers import Peers
from mcvirtd.state.replication import note_left_behind
from mcvirtd.tasks.task import current_task

log = logging.getLogger(__name__)

FOLLOW_FOR = 1.0
# A task goes on while its node can't be asked for it: a link that is cut for a moment, a daemon that systemd restarts.
RETURNS_WITHIN = 30.0
ASK_AGAIN_AFTER = 0.5
_news = msgspec.json.Decoder(TaskNews)


class Errands:
    """Runs operations of one node ("verification.verify_disk") on other nodes; on this one, *node*, through *door*."""

    def __init__(self, peers: Peers, *, node: str = "", door: Door | None = None) -> None:
        self._peers = peers
        self._node = node
        self._door = door

    def run(
        self, node: str, operation: str, arguments: dict[str, Any], heard: Callable[[TaskInfo], None]
    ) -> msgspec.Raw:
        """The operation's result in wire form, or its error raised; *heard* is told of the task there as it goes on.

        Cancelling the current task cancels that one, and waits for it to unwind. A node that can't be asked any more is
        waited for, a while. Raises NodeUnreachable before it is begun, and AnswerLost when it may go on there.
        """
        caller, task = current_caller(), current_task()
        reply = self._forward(node, operation, arguments, caller)
        if reply.task is None:
            note_left_behind(reply.away)
            return reply.ok
        seen, told = -1, False
        away_since: float | None = None
        while True:
            telling = task.cancelled.is_set() and not told
            following = {"task": reply.task, "seen": seen, "wait": FOLLOW_FOR}
            try:
                if telling:
                    told = self._cancel(node, reply.task, caller)
                news = _news.decode(self._forward(node, "task.follow", following, caller).ok)
            except NodeUnreachable as error:
                if away_since is None:
                    away_since = time.monotonic()
                else:  # it answers heartbeats, and this not
                    task.cancelled.wait(ASK_AGAIN_AFTER)
                left = away_since + RETURNS_WITHIN - time.monotonic()
                returns = left > 0 and not task.cancelled.is_set() and self._returns(node, left)
                # Who cancels it while the node is waited for: that is said once, lest it goes on there for nobody.
                untold = task.cancelled.is_set() and not told and not telling
                if not returns and not untold:
                    raise AnswerLost(node=node, reason=f"{_reason(error)} Task {reply.task} may go on there.") from None
                continue
            away_since = None
            seen = news.info.version
            heard(news.info)
            if news.info.state in ENDED:
                note_left_behind(news.away)
                if news.info.error is not None:
                    raise from_wire(news.info.error)
                if news.info.state is TaskState.CANCELLED:
                    raise TaskCancelled(by="")
                return news.result

    def _cancel(self, node: str, task: str, caller: Caller) -> bool:
        """The task there is to unwind; it may have ended this very moment. Raises NodeUnreachable."""
        try:
            self._forward(node, "task.cancel", {"task": task}, caller)
        except NodeUnreachable:
            raise
        except McvirtError as error:
            log.debug("task %s on node %s is not cancelled: %s", task, node, error)
        return True

    def _returns(self, node: str, within: float) -> bool:
        """Whether the node answers again before that many seconds have passed, or the task here is cancelled."""
        ends = time.monotonic() + within
        while not current_task().cancelled.is_set() and (left := ends - time.monotonic()) > 0:
            if self._peers.wait_for(node, min(left, FOLLOW_FOR)):
                return True
        return False

    def _forward(self, node: str, operation: str, arguments: dict[str, Any], caller: Caller) -> Reply:
        reply = self._reply(node, operation, arguments, caller)
        if reply.error is not None:
            raise from_wire(reply.error)
        return reply

    def _reply(self, node: str, operation: str, arguments: dict[str, Any], caller: Caller) -> Reply:
        if self._door is not None and node == self._node:
            # Not the caller's session: it may end before the errand does.
            reply = self._door(operation, msgspec.structs.replace(caller, token="", session="", via=node), arguments)
            if reply is None:
                raise BadArgument(what="operation", why="this node has none of that name that can be handed on.")
            return reply
        handed_on = {
            "operation": operation,
            "arguments": arguments,
            "user": caller.user,
            "root": caller.root,
            "address": caller.address,
        }
        if caller.without or caller.ignore_drbd:
            handed_on |= {"without": caller.without, "ignore_drbd": caller.ignore_drbd}
        return msgspec.json.decode(self._peers.call(node, "peer", "forward", handed_on), type=Reply)


def _reason(error: NodeUnreachable) -> str:
    return str(error.fields.get("reason") or error)
