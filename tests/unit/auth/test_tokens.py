from __future__ import annotations

import threading
import timeit
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt.errors import NotFound, SessionRefused, StateNotWritable
from mcvirtd.auth import tokens
from mcvirtd.auth.tokens import Session, Sessions

NOW = 1_800_000_000.0


class Memory:
    """A store that can be full, and that remembers how often it was written to."""

    def __init__(self) -> None:
        self.kept: dict[str, Session] = {}
        self.saves = 0
        self.full = False

    def save(self, session: Session) -> None:
        self._writable()
        self.saves += 1
        self.kept[session.id] = session

    def delete(self, session_id: str) -> None:
        self._writable()
        self.kept.pop(session_id, None)

    def load_all(self) -> Iterable[Session]:
        return list(self.kept.values())

    def _writable(self) -> None:
        if self.full:
            raise StateNotWritable(path="memory", reason="No space left on device.")


@pytest.fixture
def store() -> Memory:
    return Memory()


@pytest.fixture
def sessions(store: Memory) -> Sessions:
    return Sessions(store)


def refused(sessions: Sessions, token: str, now: float = NOW) -> None:
    with pytest.raises(SessionRefused):
        sessions.check(token, now)


def test_a_token_leads_to_its_session_and_is_stored_nowhere(sessions: Sessions, store: Memory) -> None:
    token, session = sessions.issue("alice", address="10.0.0.1", now=NOW, note="laptop")
    assert len(token) == 43 and token.isascii()
    assert sessions.check(token, NOW + 1).id == session.id
    assert (session.user, session.address, session.note) == ("alice", "10.0.0.1", "laptop")
    kept = msgspec.json.encode(store.kept)
    assert token.encode() not in kept and tokens.token_hash(token).encode() in kept
    assert session.id not in tokens.token_hash(token)


@pytest.mark.parametrize("token", ["", "x", "x" * 43, "é" * 43, "\udcff" * 43, "x" * 1_000_000])
def test_a_forged_token_is_refused(sessions: Sessions, token: str) -> None:
    sessions.issue("alice", address="", now=NOW)
    refused(sessions, token)


def test_a_hash_is_not_a_token(sessions: Sessions) -> None:
    _, session = sessions.issue("alice", address="", now=NOW)
    refused(sessions, session.token_hash)
    refused(sessions, session.id)


def test_an_unused_session_ends_and_a_used_one_goes_on(sessions: Sessions) -> None:
    token, _ = sessions.issue("alice", address="", now=NOW)
    idle, _ = sessions.issue("alice", address="", now=NOW)
    sessions.check(token, NOW + 1799)
    sessions.check(token, NOW + 3598)
    refused(sessions, idle, NOW + 1800)
    refused(sessions, token, NOW + 3598 + 1800)


def test_no_use_keeps_a_session_beyond_its_absolute_end(sessions: Sessions) -> None:
    token, _ = sessions.issue("alice", address="", now=NOW)
    moment = NOW
    while moment + 1000 < NOW + 43200:
        moment += 1000
        sessions.check(token, moment)
    refused(sessions, token, NOW + 43200)


@given(
    created=st.floats(0, 1e9),
    idle=st.floats(1, 1e6),
    absolute=st.floats(1, 1e6),
    used=st.floats(0, 1e6),
    later=st.floats(0, 2e6),
)
def test_memory_and_the_rule_agree_on_what_has_expired(
    created: float, idle: float, absolute: float, used: float, later: float
) -> None:
    store = Memory()
    token, session = Sessions(store, idle_timeout=idle, absolute_timeout=absolute).issue("a", address="", now=created)
    session = msgspec.structs.replace(session, last_used=created + used)
    store.save(session)
    now = created + later
    try:
        Sessions(store).check(token, now)
        good = True
    except SessionRefused:
        good = False
    assert good == (not tokens.expired(session, now))


def test_sessions_survive_a_restart_and_expired_ones_are_purged(store: Memory) -> None:
    before = Sessions(store)
    old, _ = before.issue("alice", address="", now=NOW - 5000)
    token, session = before.issue("bob", address="", now=NOW)
    after = Sessions(store)
    assert after.check(token, NOW + 5) == session
    refused(after, old)
    assert after.purge(NOW) == 1
    assert set(store.kept) == {session.id}
    assert after.purge(NOW) == 0


def test_the_last_use_is_written_once_a_minute_at_most(sessions: Sessions, store: Memory) -> None:
    token, session = sessions.issue("alice", address="", now=NOW)
    for second in range(600):
        sessions.check(token, NOW + second)
    assert store.saves == 1 + 9
    assert sessions.listing("alice", now=NOW + 600)[0].last_used == NOW + 599
    assert NOW + 599 - store.kept[session.id].last_used <= 60
    sessions.flush()
    assert store.kept[session.id].last_used == NOW + 599


def test_a_full_disk_ends_no_session_but_lets_none_begin(sessions: Sessions, store: Memory) -> None:
    token, session = sessions.issue("alice", address="", now=NOW)
    store.full = True
    assert sessions.check(token, NOW + 100).id == session.id
    assert sessions.check(token, NOW + 101).id == session.id
    with pytest.raises(StateNotWritable):
        sessions.issue("bob", address="", now=NOW)
    assert sessions.listing("bob", now=NOW) == []
    with pytest.raises(StateNotWritable):
        sessions.revoke(session.id)
    assert sessions.check(token, NOW + 102).id == session.id
    store.full = False
    sessions.revoke(session.id)
    refused(sessions, token)


def test_a_revoked_session_ends_at_once_and_for_good(sessions: Sessions, store: Memory) -> None:
    token, session = sessions.issue("alice", address="", now=NOW)
    assert sessions.revoke(session.id).user == "alice"
    refused(sessions, token)
    refused(Sessions(store), token)
    with pytest.raises(NotFound):
        sessions.revoke(session.id)


def test_all_sessions_of_a_user_end_but_the_one_that_asks(sessions: Sessions) -> None:
    mine, keep = sessions.issue("alice", address="", now=NOW)
    other, _ = sessions.issue("alice", address="", now=NOW)
    bob, _ = sessions.issue("bob", address="", now=NOW)
    assert sessions.revoke_user("alice", but=keep.id) == 1
    refused(sessions, other)
    sessions.check(mine, NOW)
    assert sessions.revoke_user("alice") == 1
    refused(sessions, mine)
    sessions.check(bob, NOW)
    assert [session.user for session in sessions.listing(now=NOW)] == ["bob"]


def test_a_clock_set_back_ends_nothing(sessions: Sessions) -> None:
    token, session = sessions.issue("alice", address="", now=NOW)
    sessions.check(token, NOW - 86400)
    assert sessions.get(session.id).last_used == NOW


def test_a_long_call_counts_as_use_until_its_end(sessions: Sessions) -> None:
    token, session = sessions.issue("alice", address="", now=NOW)
    sessions.touch(session.id, NOW + 1700)
    sessions.check(token, NOW + 3000)
    sessions.touch("gone", NOW)


def test_a_user_with_very_many_sessions_loses_the_one_unused_for_longest(store: Memory) -> None:
    sessions = Sessions(store, most_per_user=3)
    issued = [sessions.issue("alice", address="", now=NOW + number)[0] for number in range(3)]
    sessions.check(issued[0], NOW + 10)
    sessions.issue("alice", address="", now=NOW + 11)
    refused(sessions, issued[1], NOW + 12)
    for token in (issued[0], issued[2]):
        sessions.check(token, NOW + 12)
    assert len(store.kept) == 3


def test_a_session_in_use_by_many_threads_stays_revoked(sessions: Sessions, store: Memory) -> None:
    tokens_ = [sessions.issue("alice", address="", now=NOW)[0] for _ in range(20)]
    stop = threading.Event()

    def use() -> None:
        moment = NOW
        while not stop.is_set():
            moment += 61
            for token in tokens_:
                try:
                    sessions.check(token, moment % 1700 + NOW)
                except SessionRefused:
                    pass

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for session in sessions.listing("alice", now=NOW):
            sessions.revoke(session.id)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert store.kept == {} and sessions.listing(now=NOW) == []


def test_a_use_that_began_before_a_revocation_writes_nothing_after_it(sessions: Sessions, store: Memory) -> None:
    _, session = sessions.issue("alice", address="", now=NOW)
    live = sessions._by_hash[session.token_hash]
    sessions.revoke(session.id)
    sessions._save_use(live, NOW + 100)
    assert store.kept == {}


def test_a_check_costs_a_few_microseconds(sessions: Sessions) -> None:
    for number in range(2000):
        sessions.issue(f"user{number}", address="", now=NOW)
    token, _ = sessions.issue("alice", address="", now=NOW)
    best = min(timeit.repeat(lambda: sessions.check(token, NOW + 1), number=2000, repeat=7)) / 2000
    print(f"check: {best * 1e6:.2f} us")
    assert best < 10e-6
