"""Check files in several processes."""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from rich.console import Console
from rich.progress import track

from pipeline.errors import RunError
from pipeline.guard.worker_pool import worker_pool
from pipeline.look_ahead import look_ahead
from pipeline.verify.facts import Context, TableFile
from pipeline.verify.file.check import Checked, Checker, check_file, start_checker


class CheckerPool:
    """Checks files in so many processes, within a `with` block. The results come in the order of the files."""

    def __init__(self, context: Context, workers: int):
        self.context, self.workers = context, workers
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "CheckerPool":
        if self.workers > 1:
            self.executor = worker_pool(self.workers, start_checker, (self.context,))
        return self

    def check(self, files: list[TableFile], title: str) -> Iterator[Checked]:
        console = Console(file=sys.stderr)
        shown = partial(track, description=title, total=len(files), console=console, disable=not console.is_terminal)
        executor = self.executor
        if executor is None:
            checker = Checker(self.context)
            yield from shown(checker.check(file) for file in files)
            return
        try:
            yield from shown(look_ahead(lambda file: executor.submit(check_file, file), files, 2 * self.workers))
        except BrokenProcessPool:
            raise RunError("a worker process died, most likely because memory ran out; try fewer --workers") from None

    def __exit__(self, *exc: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
