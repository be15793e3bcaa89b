"""The settings of the export of a model: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from m2f_core.config.labels import Task
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, Section, check_fields

FormatName = Literal["onnx", "pt2"]
OPSET = 20  # PyTorch's own default; onnxruntime reads it from 1.17 on

_FORMAT = Section("format")
_MODEL = Section("model and task")
_CHECK = Section("check", "Outputs are compared with PyTorch's before the folder appears.")


@dataclass(frozen=True)
class ExportModelSettings:
    """Write the network of a checkpoint as a file that other programs run, and compare it with PyTorch on the spot.

    The file takes normalised images of one size, any number at once, and gives the logits of classes and masks before
    post-processing. model.json beside it says how images become its input and which classes it knows.
    """

    output: Annotated[str, IN_AND_OUT]
    """Write model.onnx or model.pt2 and model.json into this local folder, which must be empty or not exist yet."""
    format: Annotated[FormatName, _FORMAT]
    """onnx: for onnxruntime, OpenVINO, TensorRT and others (needs the extra `onnx`); pt2: a program of torch.export."""
    model: Annotated[str, _MODEL] = Settings.model
    """Export this checkpoint: a folder, an original .pkl file, a URI of either, or a hub id (needs the extra `hub`)."""
    task: Annotated[Task, _MODEL] = "panoptic"
    """A network that reads its task answers for this one alone. Other networks do not read the task; segments are
    compared for it."""
    image_size: Annotated[str | None, _MODEL] = None
    """Take images of HEIGHTxWIDTH pixels, multiples of 32 (384x384). Default: the size in the checkpoint's files, if it
    is one."""
    opset: Annotated[int | None, _FORMAT, Interval(ge=18, le=23)] = None
    """onnx: use the operators of this version of ONNX. Default: 20."""
    check: Annotated[tuple[str, ...], _CHECK] = ()
    """Compare logits and segments of these images, too: folders, URI prefixes, objects, tars or patterns. Default:
    logits of noise alone."""
    limit: Annotated[int, _CHECK, Interval(ge=1, le=10_000)] = 8
    """Compare the first N images of --check; a CPU takes seconds for each."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.opset is not None and self.format != "onnx":
            raise RunError(f"--opset is for --format onnx, not for {self.format}")
        if "://" in self.output:
            raise RunError(f"--output {self.output} is no local folder; export to a folder, then copy it")
        self.of_run()  # refuses what a run would refuse

    def of_run(self) -> Settings:
        """The settings of a run that would use the model and the images in this way."""
        return Settings(
            input=self.check or ("unused",),
            output="unused",
            model=self.model,
            task=self.task,
            image_size=self.image_size,
            limit=self.limit,
        )
