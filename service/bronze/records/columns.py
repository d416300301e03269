"""The Arrow schemas of a source: of its objects, its table, and its columnar messages."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.json

from bronze.records.fields import Field, FieldType
from bronze.records.sources import CLASSIFICATION_ID, Source

ARROW_TYPES: Mapping[FieldType, pa.DataType] = {
    FieldType.STRING: pa.string(),
    FieldType.BOOL: pa.bool_(),
    FieldType.INT32: pa.int32(),
    FieldType.INT64: pa.int64(),
    FieldType.FLOAT32: pa.float32(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    FieldType.DATE: pa.date32(),
    FieldType.BINARY: pa.binary(),
    FieldType.JSON: pa.string(),
}

_BRONZE_COLUMNS = [
    pa.field("file_path", pa.string(), nullable=False),
    pa.field("classification_id", pa.string(), nullable=False),
    pa.field("_submission_id", pa.string(), nullable=False),
    pa.field("_record_index", pa.int64(), nullable=False),
    pa.field("_origin", pa.string()),
    pa.field("_received_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("_trace_id", pa.string(), nullable=False),
    pa.field("_schema_version", pa.int32(), nullable=False),
    pa.field("_payload", pa.string()),
]


def arrow_type(field: Field) -> pa.DataType:
    """The Arrow type of a declared field's column."""
    match field.type:
        case FieldType.DECIMAL:
            return pa.decimal128(field.precision, field.scale)
        case FieldType.LIST:
            return pa.list_(arrow_type(field.children[0]))
        case FieldType.MAP:
            return pa.map_(pa.string(), arrow_type(field.children[1]))
        case FieldType.STRUCT:
            return pa.struct([(child.name, arrow_type(child)) for child in field.children])
        case _:
            return ARROW_TYPES[field.type]


def object_schema(source: Source) -> pa.Schema:
    """The columns of a source's objects: the declared fields, then the columns that Bronze adds."""
    return pa.schema(_declared(source) + _BRONZE_COLUMNS)


def table_schema(source: Source) -> pa.Schema:
    """The columns of a source's table: those of its objects. A declared field may be null, since older objects lack
    it if it was added later.
    """
    declared = {field.name for field in source.fields}
    return pa.schema(
        [field.with_nullable(True) if field.name in declared else field for field in object_schema(source)]
    )


def columnar_schema(source: Source) -> pa.Schema:
    """The columns of a source's columnar messages: the declared fields, then `classification_id` and `_payload`.

    `classification_id` is null if the submission's default applies to the row. `_payload` holds the undeclared columns
    as a JSON object; it is null if there are none.
    """
    return pa.schema([*_declared(source), pa.field(CLASSIFICATION_ID, pa.string()), pa.field("_payload", pa.string())])


def _declared(source: Source) -> list[pa.Field]:
    return [pa.field(field.name, arrow_type(field), nullable=not field.required) for field in source.fields]
