"""A DuckLake catalog over one snapshot: the lake's own Parquet files, nothing copied, for those who have a lakehouse.

    attach 'ducklake:lake.ducklake' as lake (read_only);

Follows the DuckLake specification 1.0 (https://ducklake.select/docs/stable/specification). The file is written by
hand, because DuckLake is an extension that Flywheel neither ships nor loads; statistics, which are optional, are left
out. Open it read-only: DuckLake would otherwise believe that the files are its own to delete.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.files import writing
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import STORAGE
from flywheel.errors import LakeError

VERSION = "1.0"
_TABLES = {
    "ducklake_metadata": "key varchar, value varchar, scope varchar, scope_id bigint",
    "ducklake_snapshot": "snapshot_id bigint, snapshot_time timestamptz, schema_version bigint, "
    "next_catalog_id bigint, next_file_id bigint",
    "ducklake_snapshot_changes": "snapshot_id bigint, changes_made varchar, author varchar, commit_message varchar, "
    "commit_extra_info varchar",
    "ducklake_schema": "schema_id bigint, schema_uuid uuid, begin_snapshot bigint, end_snapshot bigint, "
    "schema_name varchar, path varchar, path_is_relative boolean",
    "ducklake_schema_versions": "begin_snapshot bigint, schema_version bigint, table_id bigint",
    "ducklake_table": "table_id bigint, table_uuid uuid, begin_snapshot bigint, end_snapshot bigint, schema_id bigint, "
    "table_name varchar, path varchar, path_is_relative boolean",
    "ducklake_table_stats": "table_id bigint, record_count bigint, next_row_id bigint, file_size_bytes bigint",
    "ducklake_table_column_stats": "table_id bigint, column_id bigint, contains_null boolean, contains_nan boolean, "
    "min_value varchar, max_value varchar, extra_stats varchar",
    "ducklake_column": "column_id bigint, begin_snapshot bigint, end_snapshot bigint, table_id bigint, "
    "column_order bigint, column_name varchar, column_type varchar, initial_default varchar, default_value varchar, "
    "nulls_allowed boolean, parent_column bigint, default_value_type varchar, default_value_dialect varchar",
    "ducklake_column_mapping": "mapping_id bigint, table_id bigint, type varchar",
    "ducklake_name_mapping": "mapping_id bigint, column_id bigint, source_name varchar, target_field_id bigint, "
    "parent_column bigint, is_partition boolean",
    "ducklake_column_tag": "table_id bigint, column_id bigint, begin_snapshot bigint, end_snapshot bigint, "
    "key varchar, value varchar",
    "ducklake_data_file": "data_file_id bigint, table_id bigint, begin_snapshot bigint, end_snapshot bigint, "
    "file_order bigint, path varchar, path_is_relative boolean, file_format varchar, record_count bigint, "
    "file_size_bytes bigint, footer_size bigint, row_id_start bigint, partition_id bigint, encryption_key varchar, "
    "mapping_id bigint, partial_max bigint",
    "ducklake_delete_file": "delete_file_id bigint, table_id bigint, begin_snapshot bigint, end_snapshot bigint, "
    "data_file_id bigint, path varchar, path_is_relative boolean, format varchar, delete_count bigint, "
    "file_size_bytes bigint, footer_size bigint, encryption_key varchar, partial_max bigint",
    "ducklake_file_column_stats": "data_file_id bigint, table_id bigint, column_id bigint, column_size_bytes bigint, "
    "value_count bigint, null_count bigint, min_value varchar, max_value varchar, contains_nan boolean, "
    "extra_stats varchar",
    "ducklake_file_partition_value": "data_file_id bigint, table_id bigint, partition_key_index bigint, "
    "partition_value varchar",
    "ducklake_file_variant_stats": "data_file_id bigint, table_id bigint, column_id bigint, variant_path varchar, "
    "shredded_type varchar, column_size_bytes bigint, value_count bigint, null_count bigint, min_value varchar, "
    "max_value varchar, contains_nan boolean, extra_stats varchar",
    "ducklake_files_scheduled_for_deletion": "data_file_id bigint, path varchar, path_is_relative boolean, "
    "schedule_start timestamptz",
    "ducklake_inlined_data_tables": "table_id bigint, table_name varchar, schema_version bigint",
    "ducklake_macro": "schema_id bigint, macro_id bigint, macro_name varchar, begin_snapshot bigint, "
    "end_snapshot bigint",
    "ducklake_macro_impl": "macro_id bigint, impl_id bigint, dialect varchar, sql varchar, type varchar",
    "ducklake_macro_parameters": "macro_id bigint, impl_id bigint, column_id bigint, parameter_name varchar, "
    "parameter_type varchar, default_value varchar, default_value_type varchar",
    "ducklake_partition_column": "partition_id bigint, table_id bigint, partition_key_index bigint, column_id bigint, "
    "transform varchar",
    "ducklake_partition_info": "partition_id bigint, table_id bigint, begin_snapshot bigint, end_snapshot bigint",
    "ducklake_sort_expression": "sort_id bigint, table_id bigint, sort_key_index bigint, expression varchar, "
    "dialect varchar, sort_direction varchar, null_order varchar",
    "ducklake_sort_info": "sort_id bigint, table_id bigint, begin_snapshot bigint, end_snapshot bigint",
    "ducklake_tag": "object_id bigint, begin_snapshot bigint, end_snapshot bigint, key varchar, value varchar",
    "ducklake_view": "view_id bigint, view_uuid uuid, begin_snapshot bigint, end_snapshot bigint, schema_id bigint, "
    "view_name varchar, dialect varchar, sql varchar, column_aliases varchar",
}
_TYPES = {
    pa.string(): "varchar",
    pa.binary(): "blob",
    pa.bool_(): "boolean",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.uint32(): "uint32",
    pa.uint64(): "uint64",
    pa.float32(): "float32",
    pa.float64(): "float64",
}
Row = tuple[Any, ...]


def write_ducklake(lake: Lake, file: Path, at: int | None = None) -> int:
    """Write a new DuckLake catalog with a table for each kind of Parquet file. How many files it names."""
    if file.exists():
        raise LakeError(f"{file} is there already; name a new file")
    files, _ = lake.contents(at)
    draft = file.with_name(f"{file.name}.part")
    draft.unlink(missing_ok=True)
    rows = list(_rows(lake, files))
    with writing(file), duckdb.connect() as connection:
        connection.execute(
            f"attach '{str(draft).replace(chr(39), chr(39) * 2)}' as export (storage_version '{STORAGE}')"
        )
        for table, columns in _TABLES.items():
            connection.execute(f"create table export.{table} ({columns})")
        for table, row in rows:
            connection.execute(f"insert into export.{table} values ({', '.join('?' * len(row))})", row)
        connection.execute("detach export")
    draft.replace(file)
    return sum(table == "ducklake_data_file" for table, _ in rows)


def _rows(lake: Lake, files: Any) -> Iterator[tuple[str, Row]]:
    now = datetime.fromtimestamp(time.time(), UTC)
    tables = list(enumerate(ARROW_SCHEMAS.items(), start=1))
    number = mapping = 0
    yield "ducklake_metadata", ("version", VERSION, None, None)
    yield "ducklake_metadata", ("created_by", "Flywheel", None, None)
    yield "ducklake_metadata", ("data_path", lake.storage.address(""), None, None)
    yield "ducklake_schema", (0, uuid.uuid4(), 0, None, "main", "main/", True)
    for table, (kind, schema) in tables:
        yield "ducklake_table", (table, uuid.uuid4(), 0, None, 0, kind, f"{kind}/", True)
        yield "ducklake_schema_versions", (0, 1, table)
        columns = list(_columns(schema))
        for order, (name, sort, parent) in enumerate(columns, start=1):
            default = (None, "NULL", True, parent, "literal", "duckdb")
            yield "ducklake_column", (order, 0, None, table, order, name, sort, *default)
        records = size = 0
        for names in files[kind].values():
            addresses = [lake.storage.address(name) for name in names]
            present = set(pq.read_schema(addresses[0], filesystem=lake.storage.filesystem).names)
            yield "ducklake_column_mapping", (mapping, table, "map_by_name")
            yield from _names(mapping, columns, present)
            for address in addresses:
                metadata = pq.read_metadata(address, filesystem=lake.storage.filesystem)
                length = lake.storage.length(address)
                place = (None, address, False, "parquet", metadata.num_rows, length, metadata.serialized_size)
                yield "ducklake_data_file", (number, table, 0, None, *place, records, None, None, mapping, None)
                number, records, size = number + 1, records + metadata.num_rows, size + length
            mapping += 1
        yield "ducklake_table_stats", (table, records, records, size)
    yield "ducklake_snapshot", (0, now, 1, len(tables) + 1, number)
    yield "ducklake_snapshot_changes", (0, 'created_schema:"main"', "flywheel", None, None)


def _columns(schema: pa.Schema) -> Iterator[tuple[str, str, int | None]]:
    """(name, type, order of the column that it lies in), from 1, lists and structs before what is in them."""
    order = 0
    waiting: list[tuple[str, pa.DataType, int | None]] = [(field.name, field.type, None) for field in reversed(schema)]
    while waiting:
        name, sort, parent = waiting.pop()
        order += 1
        if pa.types.is_list(sort):
            yield name, "list", parent
            waiting.append(("element", sort.value_type, order))
        elif pa.types.is_struct(sort):
            yield name, "struct", parent
            waiting += [(field.name, field.type, order) for field in reversed(list(sort))]
        else:
            yield name, _TYPES[sort], parent


def _names(mapping: int, columns: list[tuple[str, str, int | None]], present: set[str]) -> Iterator[tuple[str, Row]]:
    """Which column of a file is which of ours; inside Parquet, what a list holds lies in a group named `list`."""
    missing: set[int] = set()
    for order, (name, _, parent) in enumerate(columns, start=1):
        if parent in missing or (parent is None and name not in present):
            missing.add(order)
            continue
        inside = parent is not None and columns[parent - 1][1] == "list"
        above = None if parent is None else parent - 1
        yield "ducklake_name_mapping", (mapping, order - 1, "list" if inside else name, order, above, False)
