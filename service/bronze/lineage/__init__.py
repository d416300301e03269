"""From any id or path to the submissions and objects around it.

catalog_index  an API process's copy of the catalog in SQLite, searchable by every id
lookup         finds all submissions and objects that belong to an id or a path
table_snapshots  which snapshots of the tables made objects queryable
rejections     why records are in quarantine
submission     finds a submission by its id, also before it is stored

Imports: errors, objects, protocol, records, servers.
Libraries: msgspec, zstandard.
"""
