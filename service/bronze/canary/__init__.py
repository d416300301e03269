"""The canary: every minute it sends records through the API, and looks for them wherever they have to be.

run               runs the checks again and again, and reports the outcome of each
checks            what a run has sent and found, and what a check is
api               the calls of the API
api_checks        accepted; lineage
bucket_checks     the object; once
telemetry_checks  ledger and counters; the trace; the exemplar
exemplar_share    the share of all exemplars that lead to their trace, object and entry

A role. Imports: client, errors, objects, protocol, records, servers, telemetry, verify.
Libraries: httpx, msgspec, pyarrow.
"""
