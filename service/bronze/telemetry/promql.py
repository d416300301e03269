"""PromQL that the API's page and the dashboards share, so that both show the same numbers."""

#: Three exports of metrics, in seconds.
REPORTED_WITHIN_S = 15

#: Leaves out the records of `bronze canary`, which are not data of a sender. Each sum over sources has it. The server's
#: metrics have no source; there, the canary has a route of its own.
NO_CANARY = 'bronze_source!="canary"'


def histogram_series(histogram: str, suffix: str) -> str:
    """The `bucket`, `sum` or `count` series of a histogram that is given by its name and matchers."""
    return histogram.replace("{", f"_{suffix}{{", 1)


def counted(series: str, window: str, by: str = "") -> str:
    """How often in the window, exactly. `by` lists labels to group by.

    `anchored` (Prometheus 3.16) does not extrapolate: it begins at the last sample before the window, or at the first
    one in it if that is older than five minutes. A series without a sample before, in as much time as the window and in
    an hour, began in this one, so it counts from 0; if it was reset since, from its first sample.
    """
    grouping = f" by ({by})" if by else ""
    return f"""\
sum{grouping} (
  (increase({series}[{window}] anchored)
    and (present_over_time({series}[{window}] offset {window}) or present_over_time({series}[1h] offset {window})))
  or (increase({series}[{window}] anchored) and resets({series}[{window}]) > 0)
  or max_over_time({series}[{window}])
)"""


#: The processes that report the ledger. All report the same numbers, so read them with `max by`.
LEDGER = 'job=~"bronze/(api|consumer)"'


#: For how long a number of the ledger is one of now, in seconds. Prometheus forgets a process after five minutes: if
#: all stop at once, the last one that it forgets may have a number that is a second older, and it would fall.
LEDGER_AGE_S_MAX = 240


def in_ledger(series: str) -> str:
    """A number of each source now, if a process reports it. One that stopped does not hold it back: it never falls."""
    return f"({_greatest(series)} and {_greatest(f'timestamp({series})')} > time() - {LEDGER_AGE_S_MAX})"


def _greatest(series: str) -> str:
    return f"max by (bronze_source) ({series})"


def added(series: str, window: str) -> str:
    """By how much a number of the ledger grew in the window, exactly, of each source.

    Without a report at the beginning of the window, since the first one in it.
    """
    return f"""\
{in_ledger(series)} - (
  {_greatest(f"{series} offset {window}")}
  or min by (bronze_source) (min_over_time({series}[{window}]))
)"""


def waiting(matchers: str) -> str:
    """The accepted records of each source that are not done. Never negative, whichever processes report.

    No process reports more records that are done than accepted ones; so neither do the greatest numbers of all.
    """
    done = f'bronze_ledger_records{{{matchers}, bronze_outcome=~"stored|quarantined|rejected|duplicate"}}'
    accepted = f'bronze_ledger_records{{{matchers}, bronze_outcome="accepted"}}'
    return f"{in_ledger(accepted)} - {_greatest(f'sum by (bronze_source, job, instance) ({done})')}"


def quantile_counted(q: float, histogram: str, window: str) -> str:
    """A quantile of every measurement in the window, even if there is only one."""
    return f"histogram_quantile({q:g}, {counted(histogram_series(histogram, 'bucket'), window, 'le')}) >= 0"


def newest(gauge: str, by: str) -> str:
    """The value of a gauge that several processes report of the same thing, by the labels that identify it: the highest
    of the values that are at most `REPORTED_WITHIN_S` older than the newest.

    A process that was killed leaves its last value in Prometheus for five minutes. It counts only until the others have
    reported for some time.
    """
    reported = f"timestamp({gauge})"
    return f"""\
max by ({by}) (
  {gauge}
  and {reported} > on ({by}) group_left () (max by ({by}) ({reported}) - {REPORTED_WITHIN_S})
)"""


def missing(matchers: str, by: str = "") -> str:
    """How many objects and messages are missing. Each consumer reports the same numbers."""
    grouping = f" by ({by}) " if by else ""
    objects = f"sum{grouping}(max by (bronze_source) (bronze_missing_objects{{{matchers}}}))"
    messages = f"sum{grouping}(max by (bronze_source, bronze_lane) (bronze_missing_messages{{{matchers}}}))"
    return f"{objects} + {messages}"
