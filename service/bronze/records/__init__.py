"""From the bytes of a body to checked records and columns.

Pure. Imports: errors, protocol.
Libraries: msgspec, pyarrow, zstandard.
"""
