"""Reads the bytes of a body into checked records and columns.

Pure. Imports: errors, protocol.
Libraries: msgspec, pyarrow, zstandard.
"""
