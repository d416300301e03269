"""The routes of the API, a file per subject: a handler calls one part, and says nothing of its own.

They are added to the app itself: OpenTelemetry's instrumentation finds no path in a router that FastAPI includes.
"""
