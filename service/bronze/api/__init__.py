"""The HTTP API: one router per subject.

A role. Imports: errors, lineage, objectives, objects, protocol, records, servers, settings, telemetry.
Libraries: fastapi, fastapi_offline, httpx, jinja2, markupsafe, msgspec, opentelemetry, pyarrow, pydantic, starlette.
"""
