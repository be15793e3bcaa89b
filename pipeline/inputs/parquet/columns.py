"""Which columns of a Parquet file hold the images, their keys, and the values that are kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input_spec import InputSpec

_SHOWN = 12  # columns that a message names


class WrongColumnsError(ValueError):
    """A sound Parquet file without the columns that the run wants. A matter of flags, if no file has the columns."""


@dataclass(frozen=True)
class Columns:
    """Names of columns; a dot leads into a struct."""

    image: str  # of the encoded bytes
    path: str | None  # beside the bytes, in the struct<bytes, path> of Hugging Face
    key: str | None
    kept: tuple[str, ...]

    @property
    def described(self) -> tuple[str, ...]:
        """The columns that the listing reads."""
        return tuple(dict.fromkeys((*((self.key or self.path,) if self.key or self.path else ()), *self.kept)))


def find_columns(schema: pa.Schema, spec: InputSpec) -> Columns:
    """WrongColumnsError, of one line that names the columns there are, if the file has not what `spec` asks for."""
    image = spec.image_column or _only_candidate(schema)
    holder = _type_of(schema, image, "--image-column")
    if pa.types.is_struct(holder) and holder.get_field_index("bytes") >= 0:
        has_path = holder.get_field_index("path") >= 0 and _is_text(holder.field("path").type)
        columns = f"{image}.bytes", f"{image}.path" if has_path else None
    else:
        columns = image, None
    held = _type_of(schema, columns[0], "--image-column")
    if not _is_binary(held):
        raise WrongColumnsError(f"--image-column {image} holds {_name(held)}, not bytes; {_candidates(schema)}")
    if spec.key_column is not None:
        key = _type_of(schema, spec.key_column, "--key-column")
        if not is_key(key):
            raise WrongColumnsError(
                f"--key-column {spec.key_column} holds {_name(key)}, which is no text and no number"
            )
    for name in spec.keep_columns:
        kept = _type_of(schema, name, "--keep-columns")
        if any(_is_binary(inner) for inner in _types_in(kept)):
            raise WrongColumnsError(f"--keep-columns {name} holds bytes, which JSON cannot hold; leave it out")
    return Columns(*columns, spec.key_column, spec.keep_columns)


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column of a batch with this name; null where a struct around the values is null."""
    at, rest = _top(batch.schema, name)
    column = batch.column(at)
    for part in rest:
        column = pc.struct_field(_storage(column), part)
    column = _storage(column)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def is_key(data_type: pa.DataType) -> bool:
    """Whether values of the type have a text: strings, numbers, times."""
    plain = _plain(data_type)
    if _is_binary(plain) or pa.types.is_nested(plain) or pa.types.is_null(plain):
        return False
    try:
        pc.cast(pa.array([], plain), pa.string())
    except (pa.ArrowException, NotImplementedError):
        return False
    return True


def _only_candidate(schema: pa.Schema) -> str:
    found = _candidate_names(schema)
    if len(found) == 1:
        return found[0]
    if not found:
        raise WrongColumnsError(f"no column holds images, as bytes or struct<bytes, path>; {_all(schema)}")
    raise WrongColumnsError(f"{len(found)} columns may hold the images; give one as --image-column: {_list(found)}")


def _candidate_names(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_candidate(_plain(field.type)) and schema.names.count(field.name) == 1]


def _is_candidate(data_type: pa.DataType) -> bool:
    if not pa.types.is_struct(data_type):
        return _is_binary(data_type)
    at = data_type.get_field_index("bytes")
    return at >= 0 and _is_binary(data_type.field(at).type)


def _candidates(schema: pa.Schema) -> str:
    found = _candidate_names(schema)
    return f"columns of bytes: {_list(found)}" if found else _all(schema)


def _all(schema: pa.Schema) -> str:
    return f"the columns are {_list([f'{field.name} ({_name(field.type)})' for field in schema])}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "none"


def _type_of(schema: pa.Schema, name: str, flag: str) -> pa.DataType:
    """The type of a column, as it is stored. WrongColumnsError if there is none, or if a list is on the way."""
    top, rest = _top(schema, name)
    if top < 0:
        raise WrongColumnsError(f"{flag} {name}: there is no such column, or several; {_all(schema)}")
    data_type = _plain(schema.field(top).type)
    for part in rest:
        _refuse_list(data_type, name, flag)
        at = data_type.get_field_index(part) if pa.types.is_struct(data_type) else -1
        if at < 0:
            raise WrongColumnsError(f"{flag} {name}: {_name(data_type)} has no field {part}")
        data_type = _plain(data_type.field(at).type)
    if flag != "--keep-columns":
        _refuse_list(data_type, name, flag)
    return data_type


def _refuse_list(data_type: pa.DataType, name: str, flag: str) -> None:
    if pa.types.is_nested(data_type) and not pa.types.is_struct(data_type):
        raise WrongColumnsError(f"{flag} {name} holds lists ({_name(data_type)}); one value of a row is one image")


def _top(schema: pa.Schema, name: str) -> tuple[int, list[str]]:
    """The number of the top column (-1: none) and the names of the fields below it. A top name may hold dots."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        at = schema.get_field_index(".".join(parts[:length]))
        if at >= 0:
            return at, parts[length:]
    return -1, []


def _plain(data_type: pa.DataType) -> pa.DataType:
    """The type without what says how values are shown or stored."""
    while isinstance(data_type, (pa.BaseExtensionType, pa.DictionaryType)):
        is_dictionary = isinstance(data_type, pa.DictionaryType)
        data_type = data_type.value_type if is_dictionary else data_type.storage_type
    return data_type


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _types_in(data_type: pa.DataType) -> Iterator[pa.DataType]:
    plain = _plain(data_type)
    yield plain
    for number in range(plain.num_fields):
        yield from _types_in(plain.field(number).type)


def _is_binary(data_type: pa.DataType) -> bool:
    plain = _plain(data_type)
    return any(
        is_kind(plain)
        for is_kind in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
        )
    )


def _is_text(data_type: pa.DataType) -> bool:
    plain = _plain(data_type)
    return any(is_kind(plain) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _name(data_type: pa.DataType) -> str:
    text = str(data_type)
    return text if len(text) <= 60 else f"{text[:60]}..."
