"""The operator's commands.

A role. Imports: client, errors, objects, plurals, protocol, records, servers, settings.
Libraries: httpx, msgspec, rich.
"""
