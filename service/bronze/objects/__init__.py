"""The Parquet file of an object: writing and reading.

Imports: errors, protocol, records, servers.
Libraries: msgspec, pyarrow.
"""
