"""The rounds of a run: the shards that go through one Ray Data graph."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.commit.run_record import PlanFile
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.shards import SHARDS_PER_PLAN_FILE

# Ray keeps 0.7-4 KB per block in the driver and frees this memory only together with the dataset (ray#66016).
SHARDS_PER_ROUND = 50_000
# A task that waits for plan files takes more of them, the later they are: most tasks find that no file comes. But when
# a node dies, a task is repeated as a whole.
_TASKS_OF_A_SIZE, _MOST_FILES_A_TASK = 8, 16


@dataclass(frozen=True)
class Round:
    """Shards by plan file; and the numbers of plan files that may still come, by the task that waits for them."""

    shards: list[tuple[PlanFile, list[int]]]
    awaited: tuple[range, ...] = ()

    @property
    def num_tasks(self) -> int:
        return len(self.shards) + len(self.awaited)

    def most_shards(self, plan: GrowingPlan) -> int:
        """How many shards the round has; as long as the plan grows, how many it can have."""
        planned = sum(len(pending) for _, pending in self.shards)
        if not self.awaited:
            return planned
        if not plan.is_complete:
            return planned + SHARDS_PER_PLAN_FILE * sum(map(len, self.awaited))
        return planned + sum(file.num_shards for file in plan.files[self.awaited[0].start : self.awaited[-1].stop])


def rounds(plan: GrowingPlan, done: set[int], first: int = 0) -> Iterator[Round]:
    """The shards that are not done, at most SHARDS_PER_ROUND at a time. If the plan still grows, a round takes the
    files to come, too: the devices do not wait for the whole plan.

    If `first` is not 0, the first round has that many shards.
    """
    next_file = 0
    while True:
        plan.wait_for_files(next_file)
        is_complete, files = plan.is_complete, plan.files
        shards: list[tuple[PlanFile, list[int]]] = []
        while next_file < len(files):
            file = files[next_file]
            pending = [s for s in range(file.first_shard, file.first_shard + file.num_shards) if s not in done]
            if first and pending:
                now, pending = pending[:first], pending[first:]
                shards.append((file, now))
                first -= len(now)
                if not first:
                    yield Round(shards)
                    shards = []
            if pending and shards and sum(len(p) for _, p in shards) + len(pending) > SHARDS_PER_ROUND:
                break
            if pending:
                shards.append((file, pending))
            next_file += 1
        awaited: tuple[range, ...] = ()
        if not is_complete and next_file == len(files):
            room = (SHARDS_PER_ROUND - sum(len(p) for _, p in shards)) // SHARDS_PER_PLAN_FILE
            awaited = tuple(_growing_ranges(next_file, next_file + room))
        if shards or awaited:
            yield Round(shards, awaited)
        next_file += sum(map(len, awaited))
        if plan.is_complete and next_file >= len(plan.files):
            return


def _growing_ranges(first: int, end: int) -> Iterator[range]:
    size = number = 1
    while first < end:
        yield range(first, min(first + size, end))
        first += size
        if number % _TASKS_OF_A_SIZE == 0:
            size = min(2 * size, _MOST_FILES_A_TASK)
        number += 1
