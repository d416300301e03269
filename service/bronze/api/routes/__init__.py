"""The routes of the API, one file per subject. A handler only calls one part.

The routes are added to the app itself: OpenTelemetry's instrumentation does not find the paths of included routers.
"""
