"""What was measured: a row a thing, the bars some of them have to keep, the table and the file."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Bar(msgspec.Struct, frozen=True):
    """Where a ratio has to stay: at most, or at least. Where *or_more* is set, that much more is good enough, too."""

    limit: float
    at_least: bool = False
    or_more: float = 0.0

    def kept(self, ours: float, yardstick: float) -> bool:
        """Whether the ratio is on the right side."""
        if self.at_least:
            return ours >= self.limit * yardstick
        return ours <= self.limit * yardstick or ours <= yardstick + self.or_more

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}" + (f" or +{self.or_more:g}" if self.or_more else "")


BARS = {
    "list_10": Bar(1.1),
    "list_1000": Bar(2.0),
    "rpc_call_rate": Bar(0.7, at_least=True),
    "create_overhead": Bar(1.0),
    "daemon_memory": Bar(1.0),
    "complete_vm_name": Bar(1.1),
    "change_3": Bar(3.0, or_more=30.0),
    "change_3_follower": Bar(3.0, or_more=30.0),
    "change_16": Bar(2.0),
    "list_1000_3": Bar(1.2),
    "list_cut": Bar(1.0),
    "info_cut": Bar(1.0),
    "power_cut": Bar(1.2, or_more=10.0),
    "silent_marked": Bar(1.0),
    "drbd_create_16g": Bar(1.2),
    "drbd_create": Bar(2.0),
    "drbd_verify_all": Bar(1.3),
    "drbd_resync_cpu": Bar(1.0),
    "drbd_offline": Bar(1.5),
    "drbd_online": Bar(1.15),
    "drbd_online_downtime": Bar(1.1),
    "drbd_migrations": Bar(1.0, at_least=True),
    "drbd_split_shown": Bar(1.0),
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement beside its yardstick. *about* is for the table only."""

    name: str
    ours: float
    yardstick: float
    unit: str
    about: str = ""

    @property
    def ratio(self) -> float:
        """ours / yardstick."""
        return self.ours / self.yardstick

    @property
    def missed(self) -> bool:
        """Whether there is a bar for it, and it is on the wrong side."""
        bar = BARS.get(self.name)
        return bar is not None and not bar.kept(self.ours, self.yardstick)


def as_json(rows: Sequence[Row]) -> bytes:
    """The list for build/bench.json."""
    values = [
        {
            "name": row.name,
            "ours": round(row.ours, 3),
            "yardstick": round(row.yardstick, 3),
            "unit": row.unit,
            "ratio": round(row.ratio, 4),
        }
        for row in rows
    ]
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"


def table(rows: Sequence[Row]) -> str:
    """The rows for people; those with a bar first."""
    lines = [("", "ours", "yardstick", "unit", "ratio", "bar", "")]
    for row in sorted(rows, key=lambda row: row.name not in BARS):
        bar = BARS.get(row.name)
        lines.append(
            (
                row.name,
                f"{row.ours:.1f}",
                f"{row.yardstick:.1f}",
                row.unit,
                f"{row.ratio:.3f}",
                f"{bar} {'MISSED' if row.missed else 'kept'}" if bar else "",
                row.about,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    numbers = (1, 2, 4)
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
