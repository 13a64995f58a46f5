"""Failed logins make the next ones wait: per user, and per address they come from.

Two counters grow with each failure and fade by half every few minutes. Beyond the first few, each failure doubles the
wait, up to a cap: a short one for the user, so that an attacker cannot keep anybody out for long, and a longer one for
the address. From an address where a user has logged in before, neither counter keeps them waiting, only what was got
wrong under that name from that very address: an attack from elsewhere does not lock them out at all.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from mcvirt.errors import LoginFailed, LoginsBusy, LoginSlowedDown


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one may guess: *free* failures cost nothing, each one more doubles the wait up to *longest* seconds.

    At most *at_once* may be under way; only one at a time when the free ones are used up.
    """

    free: int
    longest: float
    at_once: int
    half_life: float = 600.0


PER_USER = Pace(free=3, longest=30.0, at_once=32)
PER_ADDRESS = Pace(free=10, longest=300.0, at_once=64, half_life=3600.0)
REMEMBERED = 4096
_FORGET_AFTER = 30 * 86400.0
_LONGEST_KEY = 64


@dataclass(slots=True)
class _Counter:
    failures: float = 0.0
    last: float = 0.0
    running: int = 0

    def faded(self, pace: Pace, now: float) -> float:
        return self.failures * math.exp2(-max(0.0, now - self.last) / pace.half_life)

    def wait(self, pace: Pace, now: float) -> float:
        beyond = round(self.faded(pace, now)) - pace.free
        if beyond <= 0:
            return 0.0
        delay = min(pace.longest, float(2 ** min(beyond - 1, 32)))
        return max(0.0, self.last + delay - now)

    def crowded(self, pace: Pace, now: float) -> bool:
        # Whoever has used up the free ones guesses one at a time: otherwise all guesses would be sent at once.
        used_up = round(self.faded(pace, now)) >= pace.free
        return self.running >= (1 if used_up else pace.at_once)

    def failed(self, pace: Pace, now: float) -> None:
        self.failures = min(self.faded(pace, now) + 1.0, 64.0)
        self.last = now


class _Counters:
    """The counters of one kind; past *most*, those used least recently are forgotten."""

    def __init__(self, pace: Pace, most: int) -> None:
        self.pace = pace
        self._most = most
        self._entries: OrderedDict[str, _Counter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, key: str) -> _Counter:
        counter = self._entries.get(key)
        if counter is None:
            counter = self._entries[key] = _Counter()
        self._entries.move_to_end(key)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
        return counter

    def wait(self, key: str, now: float) -> float:
        counter = self._entries.get(key)
        return 0.0 if counter is None else counter.wait(self.pace, now)

    def crowded(self, key: str, now: float) -> bool:
        counter = self._entries.get(key)
        return counter is not None and counter.crowded(self.pace, now)

    def reset(self, key: str) -> None:
        counter = self._entries.get(key)
        if counter is not None:
            counter.failures = 0.0


class Attempt:
    """One login that is being looked at. Call succeeded() once the password has proved right."""

    def __init__(self) -> None:
        self.right = False

    def succeeded(self) -> None:
        """The password was right: nothing will be counted, and the user starts afresh."""
        self.right = True


class LoginThrottle:
    """Counts failed logins and refuses new ones before their password is looked at. Safe to share between threads.

    Logins by the root token have no password to guess and are not to be passed through here.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        per_user: Pace = PER_USER,
        per_address: Pace = PER_ADDRESS,
        remembered: int = REMEMBERED,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._users = _Counters(per_user, remembered)
        self._addresses = _Counters(per_address, remembered)
        self._pairs = _Counters(per_user, remembered)
        self._known: OrderedDict[str, float] = OrderedDict()
        self._remembered = remembered

    @contextmanager
    def attempt(self, user: str, address: str) -> Iterator[Attempt]:
        """One try to log in as *user* (existing or not) from *address*.

        Raises LoginSlowedDown if it comes too soon, and LoginsBusy while too many of its kind are being looked at.
        Left without succeeded(), normally or by LoginFailed, the try counts as a failure. Left by another exception,
        the password was not judged and nothing is counted.
        """
        who = user[:_LONGEST_KEY]
        where = _network(address)
        pair = f"{where} {who}"
        counters = self._begin(who, where, pair)
        attempt = Attempt()
        judged = False
        try:
            yield attempt
            judged = True
        except LoginFailed:
            judged = True
            raise
        finally:
            with self._lock:
                now = self._clock()
                for counter, pace in counters:
                    counter.running -= 1
                    if judged and not attempt.right:
                        counter.failed(pace, now)
                if attempt.right:
                    self._welcome(who, pair, now)

    def wait(self, user: str, address: str) -> float:
        """The seconds that a login as *user* from *address* would still have to wait; 0 for none."""
        who = user[:_LONGEST_KEY]
        where = _network(address)
        with self._lock:
            now = self._clock()
            return max(counters.wait(key, now) for counters, key in self._judges(who, where, f"{where} {who}", now))

    def remembered(self) -> int:
        """How many users, addresses and pairs of them are held in memory; there is a limit to it."""
        with self._lock:
            return len(self._users) + len(self._addresses) + len(self._pairs) + len(self._known)

    def _begin(self, who: str, where: str, pair: str) -> list[tuple[_Counter, Pace]]:
        with self._lock:
            now = self._clock()
            judges = self._judges(who, where, pair, now)
            wait = max(counters.wait(key, now) for counters, key in judges)
            if wait > 0.0:
                raise LoginSlowedDown(seconds=math.ceil(wait))
            if any(counters.crowded(key, now) for counters, key in judges):
                raise LoginsBusy()
            begun = [
                (counters.of(key), counters.pace)
                for counters, key in ((self._users, who), (self._addresses, where), (self._pairs, pair))
            ]
            for counter, _ in begun:
                counter.running += 1
            return begun

    def _judges(self, who: str, where: str, pair: str, now: float) -> list[tuple[_Counters, str]]:
        seen = self._known.get(pair)
        if seen is not None and now - seen < _FORGET_AFTER:
            return [(self._pairs, pair)]
        return [(self._pairs, pair), (self._users, who), (self._addresses, where)]

    def _welcome(self, who: str, pair: str, now: float) -> None:
        self._users.reset(who)
        self._pairs.reset(pair)
        self._known[pair] = now
        self._known.move_to_end(pair)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)


def _network(address: str) -> str:
    # Whoever has one IPv6 address usually has a whole /64 of them.
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return address[:_LONGEST_KEY]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        if not ip.is_loopback:
            return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
