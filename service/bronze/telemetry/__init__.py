"""Metrics, traces and logs of every role: one declared schema, and the set-up of the OpenTelemetry SDK.

registry/      the schema, as data: the names of all signals, and their attributes and values
schema         reads the registry
signals        the names and the closed sets of values as typed constants
instruments    the instruments of the metrics
context        passes a trace on in queue messages and object metadata
post_requests  the span and the measurements of frequent POST requests
sampling       samples every Bronze write, at any ratio
exemplars      keeps the largest measurement of each bucket as its exemplar
metric_reader  exports the metrics, and shows them to scrapes
sdk            sets up the SDK with its exporters
logs           the log output
scrape         the server of `/metrics`
promql         queries that the page and the dashboards share
span_encoding  encodes spans for OTLP
losses         counts telemetry that was not exported

Imports: errors, settings.
Libraries: fastapi, opentelemetry, prometheus_client, requests, starlette, yaml.
"""

from bronze.telemetry.sdk import FASTAPI_TELEMETRY_OFF, Telemetry, start

__all__ = ["FASTAPI_TELEMETRY_OFF", "Telemetry", "start"]
