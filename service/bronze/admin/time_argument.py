"""A time in the arguments of a command."""

import argparse
import datetime as dt
import re

#: The longest time in days that an option or a setting accepts: a hundred years.
DAYS_MAX = 36_500
_DURATION = re.compile(r"(\d+)([smhd])")
_YEAR_MIN = 1970
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str) -> str:
    """A time, or a period up to now, as the time format of the queue."""
    try:
        ago = _period(text)
        moment = _time(text) if ago is None else dt.datetime.now(dt.UTC) - ago
        if moment.year < _YEAR_MIN:  # what is subtracted from it must not lead out of the calendar
            raise ValueError
        return moment.isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time (2026-11-27T10:00Z) nor a period up to now (30s, 90m, 2h, 7d)"
        ) from error


def until(text: str) -> dt.datetime:
    """A time that is not over, or a period from now on, in UTC."""
    now = dt.datetime.now(dt.UTC)
    try:
        period = _period(text)
        moment = _time(text) if period is None else now + period
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time (2026-11-27T10:00Z) nor a period from now on (30s, 90m, 2h, 7d)"
        ) from error
    if moment < now:
        raise argparse.ArgumentTypeError(f"{text!r} is in the past")
    return moment


def period(text: str) -> dt.timedelta:
    """A period that is not empty."""
    found = _period(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a period such as 30s, 90m, 2h or 7d")
    return found


def whole(text: str, minimum: int, maximum: int) -> int:
    """A whole number, such as of days or hours, in ASCII digits."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum:,} to {maximum:,}")
    return int(text)


def day(text: str) -> dt.date:
    """A day as YYYY-MM-DD."""
    try:
        parsed = dt.date.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.isoformat() != text:  # there are other forms of ISO 8601
        raise argparse.ArgumentTypeError(f"{text!r} is no day, such as 2026-11-30")
    return parsed


def _period(text: str) -> dt.timedelta | None:
    match = _DURATION.fullmatch(text)
    return dt.timedelta(seconds=int(match[1]) * _UNIT_S[match[2]]) if match else None


def _time(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
