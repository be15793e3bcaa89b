"""A bucket of any number of keys that exist only as pages of a listing, handed out as S3 does: 1,000 at a time."""

import time
from bisect import bisect_left
from dataclasses import fields
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.s3_pages import ANSWER, PageObjects

PAGE = 1000
_POOL = 30_000
_ENDS = pa.array([f"{number:03d}.jpg" for number in range(1000)])
_HALVES = pa.array([f"{half:016x}" for half in map(Random(0).getrandbits, [64] * (_POOL + 1000))])
_SIZES = pa.array(range(100_000, 101_000))


class PagedStore:
    """Answers `list_objects_v2` for keys `<root>/NNN/NNNNNNNNNNNN.jpg`, `seconds` after each question.

    Looks like an S3 file system to pipeline.inputs.objects. Threads may ask at the same time.
    """

    protocol = "s3"

    def __init__(self, num_keys: int, num_prefixes: int, seconds: float = 0.0, more: int = 0, old: bool = False):
        """`more` keys come on top in the last folder. `old`: every hundredth object has the ETag `old`."""
        self.old = old
        self.num_keys, self.seconds, self.root = num_keys + more, seconds, "photographs"
        self.num_requests = 0
        self.firsts = [number * num_keys // num_prefixes for number in range(num_prefixes)] + [self.num_keys]

    def key(self, number: int) -> str:
        folder = bisect_left(self.firsts, number + 1) - 1
        return f"{self.root}/{folder:03d}/{number:012d}.jpg"

    def find(self, text: str) -> int:
        """The number of the first key that is not below `text`."""
        low, high = 0, self.num_keys
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.key(middle) < text else (low, middle)
        return low

    def call_s3(self, method: str, **asked: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        time.sleep(self.seconds)
        self.num_requests += 1
        prefix, most = asked.get("Prefix", ""), asked.get("MaxKeys", PAGE)
        first = self.find(prefix)
        if "ContinuationToken" in asked:
            first = int(asked["ContinuationToken"])
        elif asked.get("StartAfter", "") >= prefix:
            first = max(first, self.find(asked["StartAfter"] + "\0"))
        end = self.find(prefix + "\U0010ffff")
        if asked.get("Delimiter"):
            return self._folders(prefix, asked["Delimiter"], first, end, most)
        last = min(first + most, end)
        return self._page(first, last, [], last < end)

    def _folders(self, prefix: str, delimiter: str, first: int, end: int, most: int) -> dict[str, Any]:
        folders: list[str] = []
        number = first
        while number < end and len(folders) < most:
            name, found, _ = self.key(number).removeprefix(prefix).partition(delimiter)
            if not found:
                return self._page(number, min(number + most, end), folders, number + most < end)
            folders.append(f"{prefix}{name}{delimiter}")
            number = self.find(folders[-1] + "\U0010ffff")
        return self._page(number, number, folders, number < end)

    def _page(self, first: int, last: int, folders: list[str], is_cut: bool) -> dict[str, Any]:
        parts = [PageObjects.of([], [], [])]
        number = first
        while number < last:  # within one folder and one thousand, names differ in their ends only, which are known
            folder, thousand = bisect_left(self.firsts, number + 1) - 1, number // 1000
            end = min(last, self.firsts[folder + 1], 1000 * (thousand + 1))
            places = slice(number - 1000 * thousand, end - 1000 * thousand)
            keys = pc.binary_join_element_wise(f"{self.root}/{folder:03d}/{thousand:09d}", _ENDS[places], "")
            # Of two pools whose lengths share no factor: like digests, they do not compress.
            halves = [_HALVES[place : place + end - number] for place in (number % _POOL, number % (_POOL - 1))]
            etags = pc.binary_join_element_wise(*halves, "")
            if self.old:
                etags = pc.if_else(np.arange(number, end) % 100 == 0, "old", etags)
            parts.append(PageObjects(keys, etags, _SIZES[places]))
            number = end
        objects = PageObjects(
            *(pa.concat_arrays([getattr(part, f.name) for part in parts]) for f in fields(PageObjects))
        )
        more = {"NextContinuationToken": str(last)} if is_cut else {}
        return {"IsTruncated": is_cut, ANSWER: objects, "CommonPrefixes": [{"Prefix": f} for f in folders], **more}
