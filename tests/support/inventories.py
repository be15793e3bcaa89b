"""An S3 Inventory as S3 writes it: manifest.json, manifest.checksum and data files, in each of its formats."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

FORMATS = ("CSV", "ORC", "Parquet")
DATE = "2026-11-29T01-00Z"
# Of S3's optional columns, those that matter here and one that does not.
COLUMNS = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag")
_SNAKE = {
    "Bucket": ("bucket", pa.string()),
    "Key": ("key", pa.string()),
    "VersionId": ("version_id", pa.string()),
    "IsLatest": ("is_latest", pa.bool_()),
    "IsDeleteMarker": ("is_delete_marker", pa.bool_()),
    "Size": ("size", pa.int64()),
    "LastModifiedDate": ("last_modified_date", pa.timestamp("ms")),
    "ETag": ("e_tag", pa.string()),
}


def row(bucket: str, key: str, size: int | None = 3, etag: str | None = "e" * 32, **more: Any) -> dict[str, Any]:
    return {
        "Bucket": bucket,
        "Key": key,
        "VersionId": "v",
        "IsLatest": True,
        "IsDeleteMarker": False,
        "Size": size,
        "LastModifiedDate": None,
        "ETag": etag,
        **more,
    }


def data_file(rows: Sequence[dict[str, Any]], kind: str, columns: Sequence[str] = COLUMNS) -> bytes:
    buffer = io.BytesIO()
    if kind == "CSV":
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for one in rows:
            writer.writerow([_text(name, one[name]) for name in columns])
        return gzip.compress(text.getvalue().encode())
    schema = pa.schema([_SNAKE[name] for name in columns])
    table = pa.Table.from_pylist([{_SNAKE[name][0]: one[name] for name in columns} for one in rows], schema)
    pa.orc.write_table(table, buffer) if kind == "ORC" else pq.write_table(table, buffer)
    return buffer.getvalue()


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    return (
        quote_plus(value, safe="/") if name == "Key" else str(value).lower() if isinstance(value, bool) else str(value)
    )


def inventory(
    bucket: str,
    files: Sequence[Sequence[dict[str, Any]]],
    kind: str,
    columns: Sequence[str] = COLUMNS,
    date: str = DATE,
) -> dict[str, bytes]:
    """The objects of an inventory, by key below the folder of its configuration; `files` are rows by data file."""
    endings = {"CSV": "csv.gz", "ORC": "orc", "Parquet": "parquet"}
    data = {
        f"data/{date}-{number}.{endings[kind]}": data_file(rows, kind, columns) for number, rows in enumerate(files)
    }
    schema = ", ".join(columns) if kind == "CSV" else f"struct<{','.join(_SNAKE[name][0] for name in columns)}>"
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": "1764378000000",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [
            {"key": f"prefix/{bucket}/all/{name}", "size": len(content), "MD5checksum": md5(content)}
            for name, content in data.items()
        ],
    }
    return {**with_manifest(manifest, date), **data}


def with_manifest(manifest: Any, date: str = DATE) -> dict[str, bytes]:
    return with_manifest_bytes(json.dumps(manifest).encode(), date)


def with_manifest_bytes(content: bytes, date: str = DATE) -> dict[str, bytes]:
    return {f"{date}/manifest.json": content, f"{date}/manifest.checksum": f"{md5(content)}\n".encode()}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write(folder: Path, objects: dict[str, bytes]) -> Path:
    for name, content in objects.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
