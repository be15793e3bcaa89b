"""gate.json: what the gate saw of a run, and why it held the run back, if it did."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Interval
from pydantic import TypeAdapter, with_config

from pipeline.commit.run_report import Report
from pipeline.gate.figures import Figures
from pipeline.layout import Output, RunFolder
from pipeline.store.filesystem import put_object
from pipeline.store.json_records import STRICT

_Score = Annotated[float, Interval(ge=0.0, le=1.0)]


@with_config(STRICT)
@dataclass(frozen=True)
class GoldenRecord:
    """What the run has found in the golden images, before its first image."""

    version: str  # of the golden images and what is expected of them
    metric: str  # PQ, mIoU or AP
    score: _Score
    least: _Score
    images: dict[str, _Score]  # PQ of each image with a segment in a panoptic run, the worst first

    def passed(self, version: str, least: float) -> bool:
        return self.version == version and self.score >= least

    def __str__(self) -> str:
        return f"{self.metric} of the golden images is {self.score:.3f}, and must be at least {self.least:.3f}"


@with_config(STRICT)
@dataclass(frozen=True)
class GateRecord:
    """The fields of gate.json."""

    violations: list[str]  # a line each; none: the run passed
    figures: Figures
    report: Report | None  # as it will be once the run is published, but for the versions of the tables; None: not done
    golden: GoldenRecord | None = None

    def write(self, folder: RunFolder) -> None:
        put_object(folder.filesystem, folder.gate_json, json.dumps(asdict(self)).encode())


_RECORD = TypeAdapter(GateRecord)


def read_gate_record(output: Output, folder: RunFolder) -> GateRecord | None:
    """gate.json of the run in `folder`, or None if there is none. RunError if it is damaged."""
    return output.read_record(_RECORD, folder.gate_json)
