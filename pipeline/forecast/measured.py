"""What a run of sampled images has measured: all that a forecast needs, and the file that hands it to the next job."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len
from pydantic import AfterValidator, TypeAdapter, with_config

from m2f_core.whole_files import written_whole
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line
from pipeline.store.json_records import STRICT, Count, Seconds, moment, parse_record

_MOST_BYTES = 2**20


@with_config(STRICT)
@dataclass(frozen=True)
class Size:
    """Bytes of the parts of one table."""

    image_bytes: Seconds  # each image adds this many
    standard_error: Seconds | None  # of image_bytes; None: unknown
    part_bytes: Count  # each part adds this many


@with_config(STRICT)
@dataclass(frozen=True)
class Measured:
    """The fields of the file of --forecast. Times are elapsed seconds; `step_ms` holds other times too."""

    version: Literal[1]
    written: Annotated[str, AfterValidator(moment("seconds"))]
    fingerprint: str  # fingerprint of weights and settings: another model is another speed
    device_name: Annotated[str, Len(1)]  # `cpu`, or the name of the GPU
    units_per_actor: Annotated[float, Interval(gt=0.0, le=1e6)]  # CPUs, or the part of a GPU
    num_images: Count  # of the sample
    num_failed: Count  # of these
    num_actors: Annotated[int, Interval(ge=1, le=10**6)]
    begin_seconds: Seconds  # from the start of the command until the first actor is asked for
    # From then until the first image reaches a model; and the extra time of an actor's first shards.
    load_seconds: Seconds
    image_seconds: Annotated[float, Interval(gt=0.0, le=1e12)]  # of one model actor for one image, once it is loaded
    standard_error: Seconds | None  # of image_seconds, by the choice of images; None: unknown
    write_seconds: Seconds  # from the model's last image of a shard until the shard's parts are written
    end_seconds: Seconds  # from the last part until the run is published
    step_ms: dict[str, Seconds]  # of one image: elapsed time on the device, CPU time elsewhere
    sizes: dict[str, Size]  # by table

    def write(self, file: Path) -> None:
        """RunError if the file cannot be written."""
        try:
            with written_whole(file) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            raise RunError(f"--forecast {file} cannot be written: {one_line(error)}") from None


_MEASURED = TypeAdapter(Measured)


def read_measured(file: Path, fingerprint: str) -> Measured:
    """What `Measured.write` has written. RunError if it is something else, or was measured with another model."""
    try:
        with file.open("rb") as opened:
            measured = parse_record(_MEASURED, opened.read(_MOST_BYTES))
    except (OSError, ValueError) as error:
        raise RunError(f"--forecast {file}: {one_line(error)}; plan_bucket.py --calibrate writes this file") from None
    if measured.fingerprint != fingerprint:
        raise RunError(
            f"--forecast {file} was measured with another model or other settings; run plan_bucket.py --calibrate again"
        )
    return measured
