"""PromQL that the API's page and the dashboards share, so that both show the same numbers."""

#: Leaves out the records of `bronze canary`, which are no data. Each sum over sources has it. The server's metrics have
#: no source; there, the canary has a route of its own.
NO_CANARY = 'bronze_source!="canary"'


def histogram_series(histogram: str, suffix: str) -> str:
    """The `bucket`, `sum` or `count` series of a histogram that is given by its name and matchers."""
    return histogram.replace("{", f"_{suffix}{{", 1)


def counted(series: str, window: str, by: str = "") -> str:
    """How often in the window, exactly. `by` lists labels to group by.

    `increase` extrapolates to the ends of the window and misses what a process counted before its first export, so it
    is used only if a process restarted its counters. A series that is unknown at the beginning of the window counts
    from 0.
    """
    grouping = f" by ({by})" if by else ""
    return f"""\
sum{grouping} (
  (increase({series}[{window}]) and resets({series}[{window}]) > 0)
  or (max_over_time({series}[{window}]) - {series} offset {window})
  or max_over_time({series}[{window}])
)"""


def quantile_counted(q: float, histogram: str, window: str) -> str:
    """A quantile of every measurement in the window, even if there is only one."""
    return f"histogram_quantile({q:g}, {counted(histogram_series(histogram, 'bucket'), window, 'le')}) >= 0"


def missing(matchers: str) -> str:
    """How many objects and messages are missing. Each consumer reports the same numbers."""
    objects = f"sum(max by (bronze_source) (bronze_missing_objects{{{matchers}}}))"
    messages = f"sum(max by (bronze_source, bronze_lane) (bronze_missing_messages{{{matchers}}}))"
    return f"{objects} + {messages}"
