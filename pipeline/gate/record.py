"""gate.json: what the gate saw of a run, and why it held the run back, if it did."""

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, with_config

from pipeline.commit.run_report import Report
from pipeline.gate.figures import Figures
from pipeline.layout import Output, RunFolder
from pipeline.store.filesystem import put_object
from pipeline.store.json_records import STRICT


@with_config(STRICT)
@dataclass(frozen=True)
class GateRecord:
    """The fields of gate.json."""

    violations: list[str]  # a line each; none: the run passed
    figures: Figures
    report: Report  # as it will be once the run is published, but for the versions of the tables

    def write(self, folder: RunFolder) -> None:
        put_object(folder.filesystem, folder.gate_json, json.dumps(asdict(self)).encode())


_RECORD = TypeAdapter(GateRecord)


def read_gate_record(output: Output, folder: RunFolder) -> GateRecord | None:
    """gate.json of the run in `folder`, or None if there is none. RunError if it is damaged."""
    return output.read_record(_RECORD, folder.gate_json)
