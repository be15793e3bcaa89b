"""What the export of a model prints."""

from rich.table import Table

from pipeline.export_model.export_model import ExportedModel
from pipeline.telemetry.console import output_console

_SHOWN_OPERATORS = 8


def print_exported_model(exported: ExportedModel) -> None:
    """Print the files, the operators, the differences to PyTorch and the time."""
    compared, timing, written = exported.comparison, exported.timing, exported.written
    table = Table(title=str(exported.folder), show_header=False)
    for name, num_bytes in exported.files.items():
        table.add_row(name, f"{num_bytes / 1e6:,.1f} MB")
    table.add_row("licence", exported.license)
    table.add_row("input", f"{exported.size_hw[0]}x{exported.size_hw[1]} pixels, any number of images")
    if written.opset is not None:
        table.add_row("opset", str(written.opset))
    first = ", ".join(f"{name} {number:,}" for name, number in list(written.operators.items())[:_SHOWN_OPERATORS])
    left_out = len(written.operators) - _SHOWN_OPERATORS
    table.add_row("operators", first + (f" and {left_out} more kinds" if left_out > 0 else ""))
    images = f" and {_counted(compared.images, 'image')}" if compared.images else ""
    table.add_row("compared", f"{compared.noise_inputs} inputs of noise{images}, with PyTorch as in a run on a CPU")
    for what, logits in (("class logits", compared.class_logits), ("mask logits", compared.mask_logits)):
        of = f"of up to {logits.largest_logit:.1f}"
        table.add_row(what, f"{of} differ by {logits.largest:.1e} at most, by {logits.typical:.1e} of their size")
    table.add_row("classes", f"{compared.other_classes:.1e} of the queries have another most likely class")
    table.add_row("mask bits", f"{compared.flipped:.1e} of the bits differ")
    if compared.images:
        only = compared.segments_only_in_file
        more = f", {only} found only by the file" if only else ""
        table.add_row("segments", f"{compared.segments_alike} of {compared.segments} match{more}")
    table.add_row(
        "one image",
        f"{timing.pytorch:.3f} s in PyTorch, {timing.file:.3f} s in the file, {_counted(timing.threads, 'thread')}",
    )
    output_console().print(table)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
