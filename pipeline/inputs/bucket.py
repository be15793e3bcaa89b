"""List a bucket of S3 page by page; a large one in many ranges of keys at once.

One listing hands out 1,000 keys in 50 to 200 ms, one page after the other: 10 million keys take ten minutes and more.
The listing of a range of keys can begin anywhere (`StartAfter`), so after some pages the rest is divided: first where
folders begin, then, whenever a thread has nothing to do, in the middle of the range that another thread is listing.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.container import with_all_columns
from pipeline.store.filesystem import one_line, uri_of
from pipeline.store.s3_pages import PageObjects, ask_for_page, following_pages, objects_of

logger = logging.getLogger(__name__)

RANGES = 32  # listed at a time; S3 answers 5,500 requests a second below a prefix
_PAGES_ALONE = 8  # a bucket of fewer pages is listed by one thread
_PAGES_BEFORE_DIVIDING = 4  # a range with fewer pages so far may be at its end
_TABLES_WAITING = 2 * RANGES
# Most of the time that the reader takes for a page of 1,000 keys is that of calls of Arrow, however many rows a table
# has: 0.8 ms for each page alone, 0.4 ms for each of 16 and more.
_PAGES_TOGETHER = _TABLES_WAITING
_SECONDS_TOGETHER = 0.02


def list_bucket(filesystem: Any, path: str, *, in_order: bool = False) -> Iterator[pa.Table]:
    """Every object below `path`, or the object `path` itself, as tables of LISTED; with `in_order`, sorted by key.

    Empty objects whose key ends in `/` are S3's "directory markers", and no images. Raises errors of STORE_ERRORS.
    """
    # find() and walk() of s3fs would keep 3-4 KB for every key that they list.
    bucket, _, prefix = path.partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    pages = _Pages(filesystem, bucket, prefix)
    listed_any, is_sorted, after = False, True, ""
    for number, (objects, more) in enumerate(pages.of_range("")):
        yield pages.table(objects)
        if len(objects.keys):
            is_sorted = is_sorted and _follow(objects.keys, after)
            listed_any, after = True, objects.keys[-1].as_py()
        may_divide = more and number + 1 == _PAGES_ALONE and is_sorted and not in_order
        if may_divide and pages.can_begin_behind(after):
            yield from _Ranges(pages, after).tables()
            break
    if not listed_any and prefix and filesystem.exists(path):
        info = filesystem.info(path)
        if info["type"] == "file":
            one = {"image_key": [uri_of(filesystem, path)], "etag": [str(info["ETag"]).strip('"')]}
            yield with_all_columns({**one, "size_bytes": [info["size"]]}, 1)


class _Pages:
    """Requests for pages of the keys below one prefix."""

    def __init__(self, filesystem: Any, bucket: str, prefix: str):
        self.filesystem, self.bucket, self.prefix = filesystem, bucket, prefix
        self.below = uri_of(filesystem, f"{bucket}/")

    def ask(self, **more: Any) -> dict[str, Any]:
        given = {name: value for name, value in more.items() if value}
        return ask_for_page(self.filesystem, Bucket=self.bucket, Prefix=self.prefix, **given)

    def of_range(self, after: str) -> Iterator[tuple[PageObjects, bool]]:
        """(objects, whether more follow) of each page of the keys behind `after`."""
        for page in following_pages(self.ask, StartAfter=after):
            yield objects_of(page), bool(page["IsTruncated"])

    def first_behind(self, after: str) -> str | None:
        """The first key behind `after`."""
        keys = objects_of(self.ask(StartAfter=after, MaxKeys=1)).keys
        return keys[0].as_py() if len(keys) else None

    def can_begin_behind(self, after: str) -> bool:
        """Whether this store lists from a key on. S3's directory buckets do not, for example."""
        try:
            following = self.first_behind(after)
        except OSError as error:
            logger.info("the bucket is listed by one thread: %s", one_line(error))
            return False
        return following is None or following > after

    def folders_behind(self, after: str) -> list[str]:
        """Some of the folders directly below the prefix behind `after`, as keys end there."""
        page = self.ask(StartAfter=after, Delimiter="/")
        return [one["Prefix"] for one in page.get("CommonPrefixes", ()) if one["Prefix"] > after]

    def table(self, objects: PageObjects) -> pa.Table:
        keys = pc.binary_join_element_wise(self.below, objects.keys, "")
        table = with_all_columns({"image_key": keys, "etag": objects.etags, "size_bytes": objects.sizes}, len(keys))
        is_marker = pc.and_(pc.equal(objects.sizes, 0), pc.ends_with(keys, "/"))
        return table.filter(pc.invert(is_marker)) if pc.any(is_marker).as_py() else table


@dataclass
class _Range:
    """The keys behind `after` up to and with `last`; None: to the end of the prefix."""

    after: str
    last: str | None
    num_pages: int = 0
    is_being_divided: bool = False


class _Ranges:
    """Lists the keys behind `after` with many threads. Each key belongs to one range, also while ranges are divided."""

    def __init__(self, pages: _Pages, after: str):
        self.pages = pages
        self.changed = threading.Condition()
        cuts = [after, *pages.folders_behind(after)]
        self.waiting = [_Range(low, high) for low, high in zip(cuts, [*cuts[1:], None], strict=True)][::-1]
        self.listed: list[_Range] = []  # by threads, now
        self.tables_ready: queue.Queue[pa.Table | BaseException | None] = queue.Queue(_TABLES_WAITING)
        self.stopped = False

    def tables(self) -> Iterator[pa.Table]:
        """All tables, in no order."""
        with ThreadPoolExecutor(RANGES, thread_name_prefix="listing") as threads:
            try:
                for _ in range(RANGES):
                    threads.submit(self._work)
                running = RANGES
                while running:
                    ready = self._ready()
                    if error := next((one for one in ready if isinstance(one, BaseException)), None):
                        raise error
                    running -= ready.count(None)
                    if tables := [one for one in ready if isinstance(one, pa.Table)]:
                        yield pa.concat_tables(tables).combine_chunks()
            finally:
                self._stop()

    def _ready(self) -> list[pa.Table | BaseException | None]:
        """What the threads have put, at least one thing: pages that arrive close to each other become one table."""
        ready = [self.tables_ready.get()]
        time.sleep(_SECONDS_TOGETHER)
        with contextlib.suppress(queue.Empty):
            while len(ready) < _PAGES_TOGETHER:
                ready.append(self.tables_ready.get_nowait())
        return ready

    def _stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        while not self.tables_ready.empty():  # a thread may wait for room
            self.tables_ready.get_nowait()

    def _put(self, ready: pa.Table | BaseException | None) -> None:
        while not self.stopped:
            try:
                self.tables_ready.put(ready, timeout=1.0)
                return
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while (mine := self._take()) is not None:
                self._list(mine)
                with self.changed:
                    self.listed.remove(mine)
                    self.changed.notify_all()
            self._put(None)
        except BaseException as error:  # the reader raises it
            self._put(error)

    def _take(self) -> _Range | None:
        """A range to list; None if none is left."""
        while True:
            with self.changed:
                while not self.waiting and not self.stopped and self.listed and self._to_divide() is None:
                    self.changed.wait()
                if self.stopped or not (self.waiting or self.listed):
                    return None
                if self.waiting:
                    self.listed.append(self.waiting.pop())
                    return self.listed[-1]
                victim = self._to_divide()
                assert victim is not None
                victim.is_being_divided = True
            self._divide(victim)

    def _to_divide(self) -> _Range | None:
        able = [one for one in self.listed if one.num_pages >= _PAGES_BEFORE_DIVIDING and not one.is_being_divided]
        return max(able, key=lambda one: one.num_pages, default=None)

    def _divide(self, victim: _Range) -> None:
        """Make the second half of a range a range of its own, if there are keys in it."""
        middle = self._middle(victim.after, victim.last)
        with self.changed:
            if middle is not None and victim.after < middle:  # else the thread has passed the middle
                self.waiting.append(_Range(middle, victim.last))
                victim.last = middle
            victim.is_being_divided, victim.num_pages = False, 0  # else it would be asked again at once
            self.changed.notify_all()

    def _middle(self, low: str, high: str | None) -> str | None:
        """A text behind `low` that has keys up to `high` behind it; None if only few keys are left.

        Keys that follow differ from `low` first at some place; the sooner, the farther they are. So the first place is
        found with a key behind it, then the highest character there, and the middle of the characters is taken.
        """

        def next_at(place: int, character: str) -> int | None:
            """The character at `place` of the first key that begins as `low` and goes on with `character` or later."""
            found = self.pages.first_behind(low[:place] + character)
            is_in = found is not None and found.startswith(low[:place]) and (high is None or found <= high)
            return ord(found[place]) if is_in and found is not None and len(found) > place else None

        shared = len(os.path.commonprefix([low, high or ""]))  # noqa: RUF071 - keys are no paths
        for place in range(shared, len(low)):
            highest = next_at(place, _character(ord(low[place]) + 1))
            if highest is not None:
                break
        else:
            return None
        none_from = max(_USUAL_HIGHEST, highest + 1)
        while none_from - highest > 1:
            character = _character((highest + none_from) // 2)
            found = next_at(place, character)
            highest, none_from = (highest, ord(character)) if found is None else (max(found, highest), none_from)
            if found is not None and found < ord(character):
                break  # the store does not begin where it is asked to; the pages will tell
        return low[:place] + _character((ord(low[place]) + highest + 1) // 2)

    def _list(self, mine: _Range) -> None:
        for objects, _ in self.pages.of_range(mine.after):
            if self.stopped:
                return
            keys = objects.keys
            if not _follow(keys, mine.after):
                raise OSError(
                    f"the store does not list its keys in order: {keys[0].as_py()!r} comes behind {mine.after!r}"
                )
            last_listed = keys[-1].as_py() if len(keys) else ""
            with self.changed:
                last = mine.last
                is_last = last is not None and last_listed >= last
                number = pc.sum(pc.less_equal(keys, last)).as_py() or 0 if is_last else len(keys)
                mine.after = keys[number - 1].as_py() if number else mine.after
                mine.num_pages += 1
                if mine.num_pages == _PAGES_BEFORE_DIVIDING:
                    self.changed.notify_all()
            if number:
                self._put(self.pages.table(objects.first(number)))
            if is_last:
                return


def _follow(keys: pa.StringArray, after: str) -> bool:
    """Whether the keys are sorted, and all behind `after`."""
    return not len(keys) or bool(keys[0].as_py() > after and pc.all(pc.less(keys[:-1], keys[1:]), min_count=0).as_py())


_USUAL_HIGHEST = 0x7F  # names are ASCII, mostly


def _character(number: int) -> str:
    return chr(0xE000 if 0xD800 <= number < 0xE000 else min(number, 0x10FFFF))  # in between lie no characters
