"""The Parquet file of an object, written and read.

Imports: errors, protocol, records, servers.
Libraries: msgspec, pyarrow.
"""
