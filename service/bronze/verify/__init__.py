"""Verification: whether telemetry, catalog and bucket say the same of each Bronze write.

verification     the checks
results          their results
catalog_entries  the catalog's entries of a time range, in order
object_facts     what an object in the bucket says of itself

Imports: errors, objects, plurals, protocol, servers, telemetry.
Libraries: pyarrow.
"""
