"""The commands of an operator: lineage, read, quarantine, objects, retain, erase, verify, keys, sources, lanes, the
queue, the catalog and the maintenance of tables. One of them runs again and again, as the role `retain`.

lineage_command     `bronze lineage`: prints the lineage of an id or a path, or follows new objects
read_command        `bronze read`: its command line
read_rows           writes the rows of a source to a file, or shows them
quarantine_command  `bronze quarantine`: its command line
quarantine          finds and reads quarantine objects
quarantine_replay   sends their corrected records to the API, once
objects_command     `bronze objects`: its command line
missing_objects     finds the objects that are in the catalog, but missing or damaged in the bucket
acknowledge         writes their removal records
retain_command      `bronze retain`: its command line
retention           deletes the oldest objects of each lane
retain_telemetry    the measurements of `bronze retain --every`
erase_command       `bronze erase`: its command line
erasure_run         an erasure from its document to its proof
erasure             removes a person's records from the bucket
erasure_queue       waits until the queue is stored, and finds what it still has
verify_command      `bronze verify`: its command line, and its results as a table and as JSON
keys_command        `bronze keys`: its command line
keys                creates, rotates and revokes API keys
sources_command     `bronze sources`: its command line
source_changes      the differences between two declarations of the sources
data_contract       a source as a data contract of the Open Data Contract Standard
data_contract_import  the declaration of sources that such a contract describes
change_lanes        `bronze lanes`: seals the old lanes, drains them, and replaces them
copy_queue          `bronze queue copy`: moves the queue to other servers
rebuild_catalog     `bronze catalog rebuild`: rebuilds the catalog from the bucket
table_command       `bronze table compact`, `expire` and `reprocess`: their command lines
maintain_tables     runs them: a task for one table after another
confirmation        says what a command acts on, and asks before it changes something
command_error       the error of a command that an operator has to correct
time_argument       a time, a day or a number of days in the arguments of a command
progress, reports   the progress bar, and the final output of lanes and the catalog

A role. Imports: client, errors, maintenance, objects, plurals, printable, protocol, records, servers, settings,
telemetry, verify.
Libraries: httpx, msgspec, pyarrow, rich, yaml.
"""
