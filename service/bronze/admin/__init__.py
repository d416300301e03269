"""The operator's commands.

A role. Imports: client, errors, objects, protocol, records, servers, settings.
Libraries: httpx, msgspec, rich.
"""
