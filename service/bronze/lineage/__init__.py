"""From any id or path to the submissions and objects around it.

Imports: errors, objects, protocol, servers.
Libraries: msgspec.
"""
