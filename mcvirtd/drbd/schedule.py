"""When verifications begin by themselves: "off", "daily 03:00", "sunday 03:00", "monthly 03:00"."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

import msgspec

from mcvirt.errors import BadArgument
from mcvirt.names import printable

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
OFF = "off"
_FORM = re.compile(r"(daily|weekly|monthly|" + "|".join(DAYS) + r")(?: ([01]\d|2[0-3]):([0-5]\d))?", re.ASCII)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """On *weekday* (0 is monday), on the first of the month, or each day, at *hour*:*minute* of this node's time."""

    weekday: int | None = None
    first_of_month: bool = False
    hour: int = 3
    minute: int = 0

    def last(self, now: datetime) -> datetime:
        """The latest moment not after *now* at which verifications are to begin; both with their zone."""
        day = now.astimezone().date()
        if self._on(day) > now:
            day -= timedelta(days=1)
        if self.first_of_month:
            day = day.replace(day=1)
        elif self.weekday is not None:
            day -= timedelta(days=(day.weekday() - self.weekday) % 7)
        return self._on(day)

    def _on(self, day: date) -> datetime:
        # By the offset that the clocks have on that day, which may be another one than today's. A time that they leave
        # out is as much later; astimezone() alone would have it earlier.
        moment = datetime.combine(day, time(self.hour, self.minute)).timestamp()
        return datetime.fromtimestamp(moment, UTC).astimezone()


def parse(text: str) -> Schedule | None:
    """What *text* says; None is never. Raises BadArgument."""
    words = " ".join(text.lower().split())
    if words == OFF:
        return None
    match = _FORM.fullmatch(words)
    if match is None:
        why = 'say "off", "daily", "weekly", "monthly" or a day of the week, and perhaps a time: "sunday 03:00".'
        raise BadArgument(what=f"schedule '{printable(text)}'", why=why)
    when, hour, minute = match.groups()
    return Schedule(
        weekday=6 if when == "weekly" else DAYS.index(when) if when in DAYS else None,
        first_of_month=when == "monthly",
        hour=int(hour or 3),
        minute=int(minute or 0),
    )
