"""The ledger: how many records each source accepted and stored, from what is written down.

report         reports it as metrics
accepted       counts the records that a lane accepted
catalog_size   reports how large the catalog is

Imports: errors, objects, protocol, servers, telemetry.
"""
