"""Notifications: each new object and each removal goes to the receivers of others, at least once.

follower          follows the feed for one receiver
snapshots         follows the snapshots of the Iceberg tables for one receiver
delivery          sends an event until the receiver has taken it
event             the events, their ids, and how they are written as CloudEvents
signature         the secrets of a webhook, and the signature of a message (Standard Webhooks)
webhook           sends CloudEvents to a webhook
lineage_event     the OpenLineage events of a Bronze write
openlineage       sends OpenLineage events
notify_telemetry  the span and the measurements of each attempt

A role. Imports: client, errors, protocol, servers, telemetry.
Libraries: httpx, msgspec, openlineage, opentelemetry, requests.
"""
