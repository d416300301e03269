"""The formats of the page: numbers, times and paths, as a person reads them."""

import datetime as dt

from markupsafe import Markup, escape


def wrappable(path: str) -> Markup:
    """A path in which a line break is allowed after each `/`."""
    return Markup("/<wbr>").join(escape(part) for part in path.split("/"))


def format_timestamp(at: str) -> str:
    return parse_time(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def seconds_between(start: str, end: str) -> float:
    return (parse_time(end) - parse_time(start)).total_seconds()


#: About 30 years: no duration of Bronze, but a number that somebody else reported.
LONG_S = 1e9


def format_duration(seconds: float) -> str:
    """A duration with the unit and precision that suit its size."""
    if abs(seconds) >= LONG_S:
        return f"{seconds:.3g} s"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"
    return str(dt.timedelta(seconds=round(seconds)))


def format_number(value: float) -> str:
    return f"{value:,.0f}"


def format_bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def parse_time(at: str) -> dt.datetime:
    return dt.datetime.fromisoformat(at).astimezone(dt.UTC)
