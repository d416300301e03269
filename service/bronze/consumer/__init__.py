"""The consumer: it turns the messages of lanes into objects.

run               writes all lanes concurrently, until it is stopped
lane_writer       writes one lane, by the chain protocol (`docs/delivery.md`)
ledger            which objects of the catalog are missing in the bucket
monitors          what the stored objects say of fields and senders, as metrics
tasks             tasks that end when the role stops
upload_telemetry  the spans and measurements of one upload

A role. Imports: errors, objects, process, protocol, records, servers, telemetry.
Libraries: aiorwlock, opentelemetry.
"""
