from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt.errors import LoginFailed, LoginsBusy, LoginSlowedDown
from mcvirtd.auth.throttle import LoginThrottle


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> LoginThrottle:
    return LoginThrottle(clock=clock)


def fail(throttle: LoginThrottle, user: str, address: str) -> None:
    with pytest.raises(LoginFailed), throttle.attempt(user, address):
        raise LoginFailed()


def succeed(throttle: LoginThrottle, user: str, address: str) -> None:
    with throttle.attempt(user, address) as attempt:
        attempt.succeeded()


def refused(throttle: LoginThrottle, user: str, address: str) -> int:
    looked = False
    with pytest.raises(LoginSlowedDown) as caught, throttle.attempt(user, address):
        looked = True
    assert not looked, "the password was looked at"
    return int(caught.value.seconds)


def test_a_few_mistakes_cost_nothing_and_then_the_wait_doubles(throttle: LoginThrottle, clock: Clock) -> None:
    for _ in range(3):
        fail(throttle, "alice", "10.0.0.1")
    assert throttle.wait("alice", "10.0.0.1") == 0
    waits = []
    for _ in range(7):
        fail(throttle, "alice", "10.0.0.1")
        waits.append(refused(throttle, "alice", "10.0.0.1"))
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_tries_that_were_refused_do_not_prolong_the_wait(throttle: LoginThrottle, clock: Clock) -> None:
    for _ in range(4):
        fail(throttle, "alice", "10.0.0.1")
    for _ in range(100):
        assert refused(throttle, "alice", "10.0.0.1") == 1
    clock.now += 1
    succeed(throttle, "alice", "10.0.0.1")


def test_success_lets_the_user_start_afresh(throttle: LoginThrottle, clock: Clock) -> None:
    for _ in range(4):
        fail(throttle, "alice", "10.0.0.1")
    clock.now += 1
    succeed(throttle, "alice", "10.0.0.1")
    for _ in range(3):
        fail(throttle, "alice", "10.0.0.1")
    assert throttle.wait("alice", "10.0.0.1") == 0


def test_failures_fade(throttle: LoginThrottle, clock: Clock) -> None:
    for _ in range(4):
        fail(throttle, "alice", "10.0.0.1")
    clock.now += 3600
    for _ in range(3):
        fail(throttle, "alice", "10.0.0.1")
    assert throttle.wait("alice", "10.0.0.1") == 0


def test_one_address_that_tries_many_names_is_slowed_more_than_a_user(throttle: LoginThrottle, clock: Clock) -> None:
    longest = 0
    for number in range(40):
        fail(throttle, f"user{number}", "10.0.0.9")
        wait = throttle.wait("somebody", "10.0.0.9")
        longest = max(longest, wait)
        clock.now += wait
        assert throttle.wait("somebody", "10.0.0.1") == 0
    assert longest == 300


def test_an_attack_from_anywhere_keeps_nobody_out_for_more_than_30_seconds(
    throttle: LoginThrottle, clock: Clock
) -> None:
    for number in range(200):
        clock.now += throttle.wait("alice", f"10.1.{number}.1")
        fail(throttle, "alice", f"10.1.{number}.1")
        assert throttle.wait("alice", "10.0.0.1") <= 30


def test_an_attack_from_elsewhere_does_not_touch_an_address_the_user_logged_in_from(
    throttle: LoginThrottle, clock: Clock
) -> None:
    succeed(throttle, "alice", "127.0.0.1")
    for number in range(20):
        clock.now += throttle.wait("alice", f"10.1.{number}.1")
        fail(throttle, "alice", f"10.1.{number}.1")
    assert throttle.wait("alice", "10.0.0.7") > 0
    for number in range(20):
        clock.now += throttle.wait(f"u{number}", "127.0.0.1")
        fail(throttle, f"u{number}", "127.0.0.1")
    assert throttle.wait("bob", "127.0.0.1") > 0
    succeed(throttle, "alice", "127.0.0.1")
    for _ in range(4):
        fail(throttle, "alice", "127.0.0.1")
    assert refused(throttle, "alice", "127.0.0.1") == 1


def test_the_addresses_of_one_ipv6_network_count_as_one(throttle: LoginThrottle) -> None:
    for number in range(11):
        fail(throttle, f"user{number}", f"2001:db8::{number + 1:x}")
    assert throttle.wait("x", "2001:db8::ffff") > 0
    assert throttle.wait("x", "2001:db8:1::1") == 0
    assert throttle.wait("x", "fe80::1%eth0") == 0


def test_memory_is_bounded(clock: Clock) -> None:
    throttle = LoginThrottle(clock=clock, remembered=100)
    for number in range(1000):
        address = f"10.{number // 250}.{number % 250}.1"
        fail(throttle, str(number) + "x" * 5000, address)
        succeed(throttle, f"user{number}", address)
    assert throttle.remembered() <= 400


def test_what_did_not_judge_the_password_is_not_counted(throttle: LoginThrottle) -> None:
    for _ in range(20):
        with pytest.raises(LoginsBusy), throttle.attempt("alice", "10.0.0.1"):
            raise LoginsBusy()
    assert throttle.wait("alice", "10.0.0.1") == 0
    succeed(throttle, "alice", "10.0.0.1")


def test_leaving_without_a_word_counts_as_a_failure(throttle: LoginThrottle) -> None:
    for _ in range(4):
        with throttle.attempt("alice", "10.0.0.1"):
            pass
    assert refused(throttle, "alice", "10.0.0.1") == 1


def test_guesses_sent_all_at_once_are_taken_one_at_a_time_once_some_were_wrong(
    throttle: LoginThrottle, clock: Clock
) -> None:
    for _ in range(4):
        fail(throttle, "alice", "10.0.0.1")
    clock.now += 1
    with throttle.attempt("alice", "10.0.0.1") as first:
        with pytest.raises(LoginsBusy), throttle.attempt("alice", "10.0.0.2"):
            pytest.fail("a second guess was let through")
        first.succeeded()
    succeed(throttle, "alice", "10.0.0.1")


def test_many_good_logins_at_once_are_fine_and_very_many_guesses_are_not(throttle: LoginThrottle) -> None:
    together = threading.Barrier(33)
    done = threading.Event()
    outcomes: list[str] = []

    def guess() -> None:
        with throttle.attempt("alice", "10.0.0.1") as attempt:
            together.wait(10)
            done.wait(10)
            attempt.succeeded()
            outcomes.append("in")

    threads = [threading.Thread(target=guess) for _ in range(32)]
    for thread in threads:
        thread.start()
    together.wait(10)
    try:
        with pytest.raises(LoginsBusy), throttle.attempt("alice", "10.0.0.2"):
            pass
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert outcomes == ["in"] * 32
    succeed(throttle, "alice", "10.0.0.1")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fail", "ok", "wait"]), st.sampled_from("ab"), st.sampled_from("xy"), st.floats(0, 500)
        )
    )
)
def test_no_wait_is_ever_longer_than_the_caps(steps: list[tuple[str, str, str, float]]) -> None:
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    for what, user, address, seconds in steps:
        try:
            if what == "wait":
                clock.now += seconds
            else:
                with throttle.attempt(user, address) as attempt:
                    if what == "ok":
                        attempt.succeeded()
        except LoginSlowedDown as slowed:
            assert 1 <= slowed.seconds <= 300
            clock.now += slowed.seconds
            with throttle.attempt(user, address):
                pass
