"""Rows of a user's own file: CSV with a header line, TSV, or JSON lines; each row a dictionary with its line number.

CSV quotes as spreadsheets do; in a TSV a double quote is a character as any other, as in GLUE's.

Nothing here trusts what it reads: sizes are bounded (`data/sources.py`), and every failure says where and what to do.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.sources import read_bytes
from data.squad import clean

KINDS = {".csv": ",", ".tsv": "\t"}
MOST_FIELD = 1 << 20  # characters of one field


def read_text(path: Path, what: str) -> str:
    """A file of UTF-8 text, packed by gzip or not. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"data file {path} is {'a folder' if path.is_dir() else 'missing'}; give {what}")
    try:
        return read_bytes(path, "data", "text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; convert it") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip ({error}); it looks cut off, fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def rows(source: str) -> list[tuple[int, dict[str, Any]]]:
    """(line, row) of every row of a .csv, .tsv or .jsonl, packed (.gz) or not."""
    path = Path(source)
    name = path.name.removesuffix(".gz")
    kind = Path(name).suffix
    if kind not in (*KINDS, ".jsonl"):
        raise UserError(
            f"data file {path} must end in .csv, .tsv or .jsonl, packed (.gz) or not; name it for what it is"
        )
    text = read_text(path, "a .csv, .tsv or .jsonl file")
    found = list(_json_lines(text, path) if kind == ".jsonl" else _separated(text, path, KINDS[kind]))
    if not found:
        raise UserError(f"{path} has no row; needed is a header line and rows, or a JSON object a line")
    return found


def column(row: dict[str, Any], name: str, source: str, line: int) -> Any:
    """A row's value. Raises: UserError that names the columns there are."""
    if name not in row:
        raise UserError(
            f"{source}, line {line}: no column {name!r}, there are {', '.join(map(repr, row))}; "
            "name yours with --text-column, --second-column, --label-column"
        )
    return row[name]


def text_column(row: dict[str, Any], name: str, source: str, line: int) -> str:
    """A row's value, which must be text."""
    value = column(row, name, source, line)
    if not isinstance(value, str):
        raise UserError(f"{source}, line {line}: {name!r} is {type(value).__name__}, needed is text")
    return clean(value)


def _separated(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MOST_FIELD)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: a column's name stands twice in the header {header}; names must be unique")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}; put text "
                    f"that holds {delimiter!r} or a line break in double quotes"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is it a {path.suffix} file?") from error


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); needed is an object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is a {type(row).__name__}, needed is an object with named fields")
        yield number, row
