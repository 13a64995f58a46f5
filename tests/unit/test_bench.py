from __future__ import annotations

import json
import statistics

import pytest

from tests.bench.interleave import best
from tests.bench.rows import BARS, Row, as_json, table


def row(name: str, ours: float, yardstick: float) -> Row:
    return Row(name=name, ours=ours, yardstick=yardstick, unit="ms")


def test_every_promise_has_a_bar() -> None:
    assert list(BARS) == [
        "list_10",
        "list_1000",
        "rpc_call_rate",
        "create_overhead",
        "daemon_memory",
        "complete_vm_name",
        "change_3",
        "change_3_follower",
        "change_16",
        "list_1000_3",
        "list_cut",
        "info_cut",
        "power_cut",
        "silent_marked",
        "drbd_create_16g",
        "drbd_create",
        "drbd_verify_all",
        "drbd_resync_cpu",
        "drbd_offline",
        "drbd_online",
        "drbd_online_downtime",
        "drbd_migrations",
        "drbd_split_shown",
    ]


@pytest.mark.parametrize(
    ("name", "ours", "missed"),
    [
        ("list_10", 110.0, False),
        ("list_10", 111.0, True),
        ("list_1000", 200.0, False),
        ("list_1000", 201.0, True),
        ("rpc_call_rate", 70.0, False),
        ("rpc_call_rate", 69.0, True),
        ("create_overhead", 101.0, True),
        ("daemon_memory", 101.0, True),
        ("complete_vm_name", 111.0, True),
        ("change_16", 201.0, True),
        ("list_1000_3", 120.0, False),
        ("list_1000_3", 121.0, True),
        ("silent_marked", 101.0, True),
        ("for_information", 1000.0, False),
    ],
)
def test_a_ratio_on_the_wrong_side_of_its_bar_is_missed(name: str, ours: float, missed: bool) -> None:
    measured = row(name, ours, 100.0)
    assert measured.missed is missed
    assert ("MISSED" in table([measured])) is missed


def test_where_times_are_short_a_difference_is_good_enough() -> None:
    assert not Row(name="change_3", ours=31.0, yardstick=1.0, unit="ms").missed
    assert Row(name="change_3", ours=32.0, yardstick=1.0, unit="ms").missed
    assert not Row(name="change_3", ours=60.0, yardstick=20.0, unit="ms").missed
    assert Row(name="change_3", ours=61.0, yardstick=20.0, unit="ms").missed


def test_the_file_has_what_readers_of_it_expect() -> None:
    assert json.loads(as_json([row("list_10", 50.0, 100.0)])) == [
        {"name": "list_10", "ours": 50.0, "yardstick": 100.0, "unit": "ms", "ratio": 0.5}
    ]


def test_a_disturbance_of_some_length_does_not_show() -> None:
    quiet = [10.0, 11.0, 10.0, 12.0, 10.0]
    disturbed = [*quiet, *[30.0] * 10]
    assert statistics.median(disturbed) == 30.0
    assert best(disturbed) == 10.0


def test_one_lucky_sample_does_not_show_either() -> None:
    assert best([10.0] * 8 + [1.0] + [10.0] * 3) == 10.0


def test_of_rates_the_highest_median_is_the_best() -> None:
    assert best([5.0, 5.0, 9.0, 9.0, 7.0, 7.0], max) == 9.0


def test_few_samples_are_enough() -> None:
    assert best([3.0]) == 3.0
    assert best([3.0, 1.0]) == 1.0
