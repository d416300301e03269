"""The commands of an operator.

A role. Imports: errors, objects, protocol, servers, settings.
Libraries: httpx, msgspec, rich.
"""
