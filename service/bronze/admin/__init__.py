"""The commands of an operator.

A role. Imports: client, errors, objects, protocol, records, servers, settings.
Libraries: httpx, msgspec, rich.
"""
