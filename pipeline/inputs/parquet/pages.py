"""Walk the pages of a column chunk before pyarrow decodes one: what they claim decides how much pyarrow allocates.

The sizes in a footer are words of a stranger, and so are those of a page; but pyarrow and all its codecs write at most
as many bytes as the header of the page says. The headers are in Thrift's compact protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, with the fields of `PageHeader` in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from dataclasses import dataclass

_MOST_HEADER_BYTES = 2**20  # it may hold the lowest and the highest value
_DEPTH = 8  # structs in structs; a header has 3
_DICTIONARY_PAGE = 2  # of PageType
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3  # fields of PageHeader

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


@dataclass(frozen=True)
class PageSizes:
    """Bytes after decompression, as the headers of the pages say."""

    together: int
    dictionary: int  # of its page; a value of any row may be as large


def page_sizes(chunk: memoryview, most_pages: int) -> PageSizes:
    """The sizes of all pages of a column chunk. ValueError if the headers are no such headers, or too many."""
    at = together = dictionary = pages = 0
    while at < len(chunk):
        header = _Header(chunk[at : at + _MOST_HEADER_BYTES])
        try:
            fields = header.read()
            kind, uncompressed, compressed = (fields[field] for field in (_TYPE, _UNCOMPRESSED, _COMPRESSED))
        except (IndexError, KeyError):
            raise ValueError("the header of a page is cut off or damaged") from None
        if uncompressed < 0 or compressed < 0:
            raise ValueError("the header of a page has a size below 0")
        at += header.at + compressed
        pages += 1
        if pages > most_pages:
            raise ValueError(f"a column chunk has more than {most_pages:,} pages")
        together += uncompressed
        if kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, uncompressed)
    return PageSizes(together, dictionary)


class _Header:
    """One struct of Thrift's compact protocol. IndexError where the bytes end early."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def read(self) -> dict[int, int]:
        """The integers of the struct, by field; fields of other types are passed over."""
        return self._struct(0)

    def _struct(self, depth: int) -> dict[int, int]:
        if depth > _DEPTH:
            raise ValueError("the header of a page has too many structs in structs")
        integers: dict[int, int] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            if kind in (_I16, _I32, _I64):
                integers[field] = self._integer()
            elif kind not in (_TRUE, _FALSE):  # their value is the type
                self._pass_over(kind, depth)
        return integers

    def _pass_over(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE, _BYTE):
            self._skip(1)
        elif kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind == _STRUCT:
            self._struct(depth + 1)
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._pass_over(head & 15, depth + 1)
        else:  # PageHeader has no maps
            raise ValueError("the header of a page has a field of an unknown type")

    def _byte(self) -> int:
        self._skip(1)
        return self.data[self.at - 1]

    def _skip(self, number: int) -> None:
        self.at += number
        if self.at > len(self.data):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("the header of a page has an integer of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
