"""The consumer: lanes become objects.

A role. Imports: errors, objects, protocol, records, servers, telemetry.
Libraries: opentelemetry.
"""
