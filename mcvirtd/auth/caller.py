"""Who is calling."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

ROOT = "root"
SYSTEM = "mcvirtd"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who a connection belongs to.

    *user* is empty before a login. *root* is who could read the root-only token on this node, and mcvirtd itself.
    *session* is the ID of the session, where there is one, and *token* what it is checked with at every call.
    *peer* is the node whose certificate, with the key *key* in it, the connection has shown; it is then no user.
    *joiner* is who has shown the secret of this node's connect string (*token* is that), and is no user either.
    *via* is the member that has handed on a call of *user* and vouches for who it is.
    *without* are the nodes that the user has said are gone, and wants to go on without; *ignore_drbd* says that DRBD's
    warnings are to be passed over. Both are wishes: the guard asks whether the user may.
    """

    user: str = ""
    root: bool = False
    address: str = ""
    session: str = ""
    token: str = ""
    peer: str = ""
    key: str = ""
    joiner: bool = False
    via: str = ""
    without: tuple[str, ...] = ()
    ignore_drbd: bool = False


NOBODY = Caller()
_current: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Who the operation that this thread runs was called by; NOBODY outside of one."""
    return _current.get()


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    """In the block, `current_caller()` is *caller*."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
