"""The latency objectives: limits that the service, the alerts and the dashboards share.

Pure. Imports: none.
Libraries: none.
"""

#: The longest that a request or an upload should take. It is a bound of every latency histogram's buckets
#: (telemetry/registry/metrics.yaml), so the share above it is counted exactly.
DURATION_S_MAX: float = 2


def delivery_s_max(flush_age_s: float) -> float:
    """The longest that a submission should take from its 202 to the bucket: the flush age and one upload."""
    return round(flush_age_s + DURATION_S_MAX, 3)
