"""Passwords: what may be one, how it is stored, and how it is compared."""

from __future__ import annotations

import os
import re
import secrets
import threading
import unicodedata
from base64 import b64encode

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from mcvirt.errors import BadArgument, LoginsBusy

# OWASP's least for Argon2id is 19 MiB with 2 passes and 1 lane. A third pass costs an attacker half as much
# again and a login a few ms (about 30 ms in all on a small server). More memory would be better still, but
# AT_ONCE times as much is what logins can take from a daemon that shall stay small. One lane: lanes are threads,
# and the cores are the guests'.
MEMORY_KIB = 19 * 1024
PASSES = 3
LANES = 1
AT_ONCE = 2
PATIENCE = 15.0

SHORTEST = 8
LONGEST_BYTES = 1024
GENERATED_LENGTH = 20
# Without 0 O o, 1 l I: 54 signs, so that 20 of them are 115 bits.
GENERATED_SIGNS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"

_SALT_BYTES = 16
_HASH_BYTES = 32
_PARAMETERS = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$"
_TAIL = re.compile(r"[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}", re.ASCII)
_ANY = re.compile(
    r"\$argon2id\$v=19\$m=[1-9]\d{1,6},t=[1-9]\d?,p=[1-9]\d?\$[A-Za-z0-9+/]{16,86}\$[A-Za-z0-9+/]{22,86}", re.ASCII
)


def _octets(password: str) -> bytes:
    # One keyboard sends an accented letter as one sign, another as two: both shall be the same password.
    return unicodedata.normalize("NFC", password).encode()


def acceptable(password: str) -> str:
    """*password*, if it may become somebody's; BadArgument says the rule that it breaks, never the password."""
    try:
        octets = _octets(password)
    except UnicodeEncodeError:
        raise BadArgument(what="password", why="it has bytes that are not UTF-8 text.") from None
    if not password.strip():
        raise BadArgument(what="password", why=f"it is blank. A password has at least {SHORTEST} characters.")
    if "\0" in password:
        raise BadArgument(what="password", why="it has a NUL character, which no prompt can ask for.")
    if len(unicodedata.normalize("NFC", password)) < SHORTEST:
        raise BadArgument(what="password", why=f"it is too short. A password has at least {SHORTEST} characters.")
    if len(octets) > LONGEST_BYTES:
        raise BadArgument(what="password", why=f"it is too long. A password has at most {LONGEST_BYTES} bytes.")
    return password


def generate() -> str:
    """A new random password of letters and digits that can't be mistaken for each other."""
    return "".join(secrets.choice(GENERATED_SIGNS) for _ in range(GENERATED_LENGTH))


def needs_rehash(stored: str) -> bool:
    """Whether *stored* was made with other parameters than today's, and is to be replaced at the next login."""
    return not (stored.startswith(_PARAMETERS) and _TAIL.fullmatch(stored[len(_PARAMETERS) :]))


def _text(octets: bytes) -> str:
    return b64encode(octets).rstrip(b"=").decode("ascii")


class Passwords:
    """Makes and compares password hashes, no more than *at_once* at any time, however many ask.

    Each takes 19 MiB while it runs. Who waits longer than *patience* seconds for a turn gets LoginsBusy. The hashing
    itself does not hold the interpreter's lock, so that other calls go on meanwhile.
    """

    def __init__(self, *, at_once: int = AT_ONCE, patience: float = PATIENCE) -> None:
        self._turns = threading.BoundedSemaphore(at_once)
        self._patience = patience
        # Nothing hashes to it: that it looks like a hash of today's cost is all that is asked of it.
        self._nobody = _PARAMETERS + _text(os.urandom(_SALT_BYTES)) + "$" + _text(os.urandom(_HASH_BYTES))

    def hash(self, password: str) -> str:
        """What to store of *password*: a PHC string. Raises BadArgument for a password against the rules."""
        octets = _octets(acceptable(password))
        kdf = Argon2id(
            salt=os.urandom(_SALT_BYTES),
            length=_HASH_BYTES,
            iterations=PASSES,
            lanes=LANES,
            memory_cost=MEMORY_KIB,
        )
        with _Turn(self._turns, self._patience):
            return kdf.derive_phc_encoded(octets)

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether *password* is the one that *stored* was made of.

        Pass None for a user who does not exist or has no password: the answer is False and takes the same time.
        A password that could never have been stored, or a *stored* that is no hash, is False as well, in no less time.
        """
        try:
            octets = _octets(password)
        except UnicodeEncodeError:
            octets, stored = b"", None
        if len(octets) > LONGEST_BYTES:
            octets, stored = b"", None
        if stored is None or not _ANY.fullmatch(stored):
            stored = self._nobody
        with _Turn(self._turns, self._patience):
            try:
                Argon2id.verify_phc_encoded(octets, stored)
            except (InvalidKey, ValueError):
                return False
            return True


class _Turn:
    def __init__(self, turns: threading.BoundedSemaphore, patience: float) -> None:
        self._turns = turns
        self._patience = patience

    def __enter__(self) -> None:
        if not self._turns.acquire(timeout=self._patience):
            raise LoginsBusy()

    def __exit__(self, *_: object) -> None:
        self._turns.release()
