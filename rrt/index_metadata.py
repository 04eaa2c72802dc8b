"""Columns that a CSV file tells of photos, such as their category: a search may be limited by them."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rrt.index_table import Photo, as_text, engine, reported
from utils.errors import InputError, listing

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

OWN = {*Photo._fields, "descriptor", "map"}  # columns of the table


def read_metadata(file: Path) -> "pa.Table":
    """The rows of a CSV file, whose first line names the columns, and whose first column has the photos' paths.

    Paths are relative to the file's folder. InputError where it cannot be read, or names a photo twice.
    """
    engine()  # which brings pyarrow
    import pyarrow as pa
    import pyarrow.csv

    with reported(f"{file} cannot be read", "give a CSV file with a line of names, photos' paths first"):
        with file.open(newline="", encoding="utf-8-sig") as content:
            first, *names = next(csv.reader(content), [""])
        as_string = pyarrow.csv.ConvertOptions(column_types={first: pa.string()})
        rows = pyarrow.csv.read_csv(file, convert_options=as_string)
    refused = [name for name in names if name in OWN or not name.isidentifier() or names.count(name) > 1]
    if refused or not names:
        raise InputError(
            f"{file} has the columns {listing(refused or names)}: behind the photos' path give names of letters, "
            f"digits and _, each once, none of {listing(sorted(OWN))}"
        )
    paths = [os.path.abspath(file.parent / path) for path in rows[first].to_pylist()]  # noqa: PTH100
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{file} has {twice[0]} twice: give each photo one line")
    return rows.drop([first]).append_column("path", pa.array(as_text(paths)))


def add_metadata(table: "Table", rows: "pa.Table") -> int:
    """Write columns to the rows of their photos; returns the number of rows without a photo."""
    import pyarrow as pa

    known = {field.name: field.type for field in table.schema}
    fields = [pa.field(field.name, known.get(field.name, field.type)) for field in rows.schema]
    try:
        rows = rows.cast(pa.schema(fields))
    except pa.ArrowInvalid as error:
        raise InputError(f"metadata were of other types before ({error}): name the column otherwise") from error
    new = [field for field in fields if field.name not in known]
    if new:
        table.add_columns(new)
    result = table.merge_insert("path").when_matched_update_all().execute(rows)
    return len(rows) - result.num_updated_rows
