"""What the checks of files know: of each run that is checked, and of each file. Sent to every worker process."""

from dataclasses import dataclass
from datetime import datetime

from pipeline.commit.run_record import RunRecord


@dataclass(frozen=True)
class RunFacts:
    """What run.json says of all rows of a run."""

    run_id: str
    created: datetime
    fingerprint: str
    task: str
    may_share_ids: bool  # transformers gives one id to several segments
    categories: tuple[tuple[int, str, bool], ...]  # id, name, isthing, by the model's class_id
    num_shards: int
    has_embeddings: bool
    num_attempts: int | None  # None: a tidied run, whose attempts are gone
    classes: frozenset[str] = frozenset()  # the classes whose segments the run writes; empty: all

    @classmethod
    def of(cls, record: RunRecord, num_attempts: int | None) -> "RunFacts":
        task = record.results["task"]
        return cls(
            record.run_id,
            datetime.fromisoformat(record.created),
            record.fingerprint,
            task,
            task == "panoptic" and record.results.get("postprocess") == "hf",
            tuple((one["id"], one["name"], bool(one["isthing"])) for one in record.model.categories),
            record.plan.num_shards,
            bool(record.results.get("embeddings")),
            num_attempts,
            frozenset(record.results.get("classes", ())),
        )

    @property
    def covers(self) -> bool:
        """Whether the segments of an image have all its pixels."""
        return self.task == "semantic" and not self.classes

    @property
    def is_disjoint(self) -> bool:
        """Whether no two segments of an image share a pixel."""
        return self.task != "instance"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a receipt says of a part."""

    run_id: str
    shard: int
    attempt: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of a table: a part with its receipt or, without `proof`, a file into which rows were merged."""

    number: int  # from 0, in the order of the checks
    table: str
    path: str  # relative to the output
    size_bytes: int
    num_rows: int | None  # None: nobody has said
    proof: Proof | None = None
    may_lack: bool = False  # a part without rows is in no table, so jobs/tidy.py may have removed it


@dataclass(frozen=True)
class Context:
    """What is the same for all files."""

    tables: str  # as given
    runs: dict[str, RunFacts]  # the runs to check
    other_runs: frozenset[str]  # runs whose rows are passed over
