"""Plan a run while its input is listed: the first shards run on the devices before the listing ends.

What is listed by then is compared with the table, planned, and recorded in run.json. If the listing goes on, a thread
plans the rest in batches, and plan.json says when the plan is complete. If the driver dies before, the next driver
lists the input again, leaves out what the plan files name, and goes on with the plan.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.run_record import NO_PLAN, RunRecord
from pipeline.errors import BrokenRunError, RunError
from pipeline.guard.interruption import interrupt_main
from pipeline.layout import RunFolder
from pipeline.plan.changes import Changes, Comparison, describe
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.plan_files import planned_so_far
from pipeline.plan.shards import num_bytes
from pipeline.runs.check import Checked
from pipeline.runs.planning.plan_run import complete_plan, plan_run, write_more
from pipeline.store.filesystem import one_line

logger = logging.getLogger(__name__)

_SECONDS_TO_END = 10.0


class Planner:
    """Plans one run."""

    def __init__(
        self, checked: Checked, comparison: Comparison, may_write: Callable[[], None], *, at_once: bool = False
    ):
        """`may_write` raises BrokenRunError if another driver has taken over. `at_once`: plan the whole input first."""
        self.checked, self.comparison, self.may_write = checked, comparison, may_write
        self._batches = comparison.batches(at_once=at_once)
        self._first: Changes | None = None
        self._counts_before: Counter[str] = Counter()
        self._ended = threading.Event()
        self._failure: BaseException | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Images by reason: of what is listed and compared so far, and of what earlier drivers have planned."""
        return dict(self._counts_before + self.comparison.counts)

    def find_work(self) -> bool:
        """Compare what is listed until there is an image to plan. False if there is none in the whole input."""
        self._first = next((batch for batch in self._batches if batch.num_planned), None)
        return self._first is not None

    def begin(self, images_per_shard: int, model_actors: int, computed_on: dict[str, str | None]) -> RunRecord:
        """Plan a new run of what `find_work` has found, and record it. `model_actors`: at most so many will run."""
        assert self._first is not None
        is_complete = self._first.is_last
        table = "the empty output" if self._first.version is None else f"version {self._first.version} of the table"
        so_far = "" if is_complete else " so far"
        logger.info("compared the input%s with %s: %s", so_far, table, describe(self.counts))
        return plan_run(
            self.checked,
            self._first.images(),
            self.counts,
            images_per_shard,
            computed_on,
            self.may_write,
            _tapered_for(self._first, model_actors),
            is_complete=is_complete,
        )

    def resume(self, record: RunRecord) -> GrowingPlan:
        """The plan as far as earlier drivers have written it. RunError if it is damaged."""
        folder = self.checked.output.run(record.run_id)
        plan = NO_PLAN

        def images_of_files() -> Iterator[pa.Table]:
            nonlocal plan
            for file, images in planned_so_far(self.checked.output, folder):
                plan = plan.with_file(file.path, file.num_shards, images.num_rows, num_bytes(images))
                for reason in pc.value_counts(images["reason"]).to_pylist():
                    self._counts_before[reason["values"]] += reason["counts"]
                yield images

        with self.checked.output.errors():
            try:
                self.comparison.leave_out(images_of_files())
            except ValueError as error:
                raise self.checked.output.damaged(folder.plan, str(error)) from None
        logger.info("run %s: its plan has %d images so far; the input is listed again", record.run_id, plan.num_images)
        return GrowingPlan(plan, record.counts, is_complete=False)

    @contextlib.contextmanager
    def going_on(
        self, folder: RunFolder, plan: GrowingPlan, images_per_shard: int, model_actors: int
    ) -> Iterator[None]:
        """In the body, a thread completes the plan. If the thread fails, the body is interrupted.

        Raises BrokenRunError then.
        """
        if plan.is_complete:
            self.comparison.close()
            yield
            return
        thread = threading.Thread(
            target=self._go_on, args=(folder, plan, images_per_shard, model_actors), daemon=True, name="planner"
        )
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if self._failure is not None:
                raise self._broken(folder) from self._failure
            raise
        finally:
            self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._ended.set()
        waited = 0.0
        while thread.is_alive() and waited < _SECONDS_TO_END:
            self.comparison.interrupt()  # an interrupt before a query begins is lost
            thread.join(0.1)
            waited += 0.1

    def _broken(self, folder: RunFolder) -> BrokenRunError:
        why = one_line(self._failure) if isinstance(self._failure, Exception) else "interrupted"
        return BrokenRunError(f"run {folder.run_id} broke while its input was being listed: {why}")

    def _go_on(self, folder: RunFolder, plan: GrowingPlan, images_per_shard: int, model_actors: int) -> None:
        try:
            for changes in self._batches:
                tapered_for = _tapered_for(changes, model_actors)
                images = changes.images()
                write_more(self.checked, folder, images, images_per_shard, plan, self._may_go_on, tapered_for)
            complete_plan(folder, plan, self.counts, self._may_go_on)
            logger.info("the input is listed: %s", describe(plan.counts))
            self.comparison.close()
        except BaseException as error:
            if not self._ended.is_set():
                self._failure = error
                interrupt_main()

    def _may_go_on(self) -> None:
        if self._ended.is_set():
            raise RunError("the driver ends")
        self.may_write()


def _tapered_for(changes: Changes, model_actors: int) -> tuple[int, int] | None:
    """The last shards of the last batch are small."""
    return (changes.num_planned, model_actors) if changes.is_last else None
