"""The consumer: lanes become objects.

A role. Imports: errors, objects, process, protocol, records, servers, telemetry.
Libraries: opentelemetry.
"""
