"""The consumer: it turns the messages of lanes into objects.

A role. Imports: errors, objects, process, protocol, records, servers, telemetry.
Libraries: aiorwlock, opentelemetry.
"""
