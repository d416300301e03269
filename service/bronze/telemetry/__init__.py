"""Metrics, traces and logs of every role: one declared schema, and the SDK set up to speak it.

registry/    the schema, as data: what every signal is called and may say
schema       reads it
signals      its names and closed words, typed
instruments  its metrics
context      a trace across what is not HTTP
sdk, logs, scrape  where it all goes
losses       what did not get there, counted

Imports: errors, settings.
Libraries: fastapi, opentelemetry, prometheus_client, requests, yaml.
"""

from bronze.telemetry.sdk import FASTAPI_TELEMETRY_OFF, Telemetry, start

__all__ = ["FASTAPI_TELEMETRY_OFF", "Telemetry", "start"]
