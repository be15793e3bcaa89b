"""Check files in several processes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import track

from pipeline.guard.worker_pool import worker_pool
from pipeline.look_ahead import look_ahead
from pipeline.verify.facts import Context, TableFile
from pipeline.verify.file.check import Checked, Checker, check_file, start_checker

Check = Callable[[Sequence[TableFile], str], Iterator[Checked]]  # files, title of the progress bar


@contextmanager
def checker(context: Context, workers: int) -> Iterator[Check]:
    """A function that checks files, in so many processes, and gives the results in the order of the files."""
    if workers <= 1:
        alone = Checker(context)
        yield lambda files, title: _shown((alone.check(file) for file in files), files, title)
        return
    with worker_pool(workers, start_checker, (context,)) as pool:
        yield lambda files, title: _shown(
            look_ahead(lambda file: pool.submit(check_file, file), files, 2 * workers), files, title
        )


def _shown(results: Iterator[Checked], files: Sequence[TableFile], title: str) -> Iterator[Checked]:
    console = Console(file=sys.stderr)
    yield from track(results, title, total=len(files), console=console, disable=not console.is_terminal)
