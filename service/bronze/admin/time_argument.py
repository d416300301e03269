"""A time in the arguments of a command."""

import argparse
import datetime as dt
import re

_DURATION = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str) -> str:
    """A time, or a period up to now, as the time format of the queue."""
    try:
        if ago := _DURATION.fullmatch(text):
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * _UNIT_S[ago[2]])
        else:
            moment = dt.datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
        return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time (2026-11-27T10:00Z) nor a period up to now (30s, 90m, 2h, 7d)"
        ) from error
