"""The formats that are stored, and the rules of the chain.

Pure. Imports: errors.
Libraries: msgspec, uuid_utils, zstandard.
"""
