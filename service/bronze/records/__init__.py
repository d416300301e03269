"""From the bytes of a body to checked records and columns.

sources           the declared sources, from a TOML file
fields            the declared fields, and their types
expectations      what a declaration expects of the data
media             the media types of bodies
encodings         decodes the content encodings of bodies
json_intake       checks the records of JSON bodies, and packs them into messages
columnar_reading  reads Parquet and Arrow in batches, in the API and in the publisher
columnar_intake   checks those batches, and packs their rows into messages
inference         infers fields from records and columns
declaration_text  the text of declarations that Bronze proposes
columns           the Arrow schemas of a source
arrow_cast        casts Arrow columns without loss
arrow_fields      converts Arrow columns to those of declared fields
arrow_json        converts the values of Arrow columns to JSON
spool             a checked submission: its messages, size and digest
undeclared        finds the fields of JSON records that nobody declared
refusals          the refusals that JSON and columnar bodies have in common

Pure. Imports: errors, plurals, printable, protocol.
Libraries: msgspec, pyarrow, zstandard.
"""
