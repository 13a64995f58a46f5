from __future__ import annotations

import statistics
import threading
import time
import unicodedata

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from mcvirt.errors import BadArgument, LoginsBusy
from mcvirtd.auth import passwords
from mcvirtd.auth.passwords import Passwords

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def store() -> Passwords:
    return Passwords()


def test_only_the_right_password_matches_its_hash(store: Passwords) -> None:
    stored = store.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=19456,t=3,p=1$")
    assert PASSWORD not in stored
    assert store.verify(stored, PASSWORD)
    assert not store.verify(stored, PASSWORD + " ")
    assert not store.verify(stored, "")
    assert store.hash(PASSWORD) != stored, "two hashes of one password share a salt"


def test_an_accented_letter_matches_however_the_keyboard_sends_it(store: Passwords) -> None:
    stored = store.hash(unicodedata.normalize("NFD", "mot de passé"))
    assert store.verify(stored, unicodedata.normalize("NFC", "mot de passé"))


@pytest.mark.parametrize(
    "password",
    ["", "        ", "\t\n" * 9, "short12", "x" * 1025, "é" * 513, "with\0nul12", "bad\udcffbytes", "e\u0301" * 7],
)
def test_a_password_against_the_rules_is_refused_without_being_repeated(store: Passwords, password: str) -> None:
    with pytest.raises(BadArgument) as caught:
        store.hash(password)
    assert caught.value.why.endswith(".")
    if password.strip():
        assert password not in str(caught.value)


@pytest.mark.parametrize("password", ["12345678", "x" * 1024, "é" * 512, "        x"])
def test_a_password_at_the_edge_of_the_rules_is_taken(password: str) -> None:
    assert passwords.acceptable(password) == password


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        "plain",
        "$argon2id$",
        "$argon2id$v=19$m=4294967295,t=1,p=1$" + "A" * 22 + "$" + "A" * 43,
        "$2b$12$x",
        "é",
        "$argon2id$v=19$m=8,t=0,p=0$AAAA$AAAA",
    ],
)
@pytest.mark.parametrize("password", [PASSWORD, "", "x" * 100_000, "bad\udcff"])
def test_nothing_matches_nobody_or_a_damaged_hash(store: Passwords, stored: str | None, password: str) -> None:
    assert store.verify(stored, password) is False


def test_an_unknown_user_takes_as_long_as_a_wrong_password(store: Passwords) -> None:
    stored = store.hash(PASSWORD)

    def cost(of: str | None) -> float:
        begin = time.thread_time()
        store.verify(of, "something else")
        return time.thread_time() - begin

    known = [cost(stored) for _ in range(7)]
    unknown = [cost(None) for _ in range(7)]
    ratio = statistics.median(unknown) / statistics.median(known)
    assert 0.5 < ratio < 2.0, f"an unknown user costs {ratio:.2f} times a known one"


def test_a_hash_of_other_parameters_still_matches_and_is_to_be_replaced(store: Passwords) -> None:
    old = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=64).derive_phc_encoded(
        PASSWORD.encode()
    )
    assert store.verify(old, PASSWORD)
    assert passwords.needs_rehash(old)
    assert passwords.needs_rehash("rubbish")
    assert not passwords.needs_rehash(store.hash(PASSWORD))


def test_a_generated_password_has_no_signs_that_look_alike() -> None:
    made = {passwords.generate() for _ in range(200)}
    assert len(made) == 200
    signs = set("".join(made))
    assert not signs & set("0Oo1lI")
    assert signs <= set(passwords.GENERATED_SIGNS) and len(signs) > 50
    assert all(len(password) == 20 and passwords.acceptable(password) for password in made)


def test_no_more_than_so_many_are_hashed_at_once() -> None:
    busy = Passwords(at_once=1, patience=0.05)
    inside = threading.Event()
    leave = threading.Event()

    def hold() -> None:
        assert busy._turns.acquire(timeout=5)
        inside.set()
        leave.wait(10)
        busy._turns.release()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(5)
        with pytest.raises(LoginsBusy):
            busy.verify(None, PASSWORD)
        with pytest.raises(LoginsBusy):
            busy.hash(PASSWORD)
    finally:
        leave.set()
        holder.join(10)
    assert busy.verify(busy.hash(PASSWORD), PASSWORD)


def test_other_threads_run_while_a_password_is_hashed(store: Passwords) -> None:
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.monotonic())

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        begin = time.monotonic()
        store.hash(PASSWORD)
        end = time.monotonic()
    finally:
        stop.set()
        ticker.join(10)
    assert sum(begin < at < end for at in ticks) > 100
