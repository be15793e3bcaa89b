"""Tables that are printed at the end of a run, a self-check or a preview."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from pipeline.commit.run_report import Report
from pipeline.plan.changes import describe
from pipeline.runs.preview import Preview
from pipeline.runs.roll_back import RollBack
from pipeline.telemetry.console import output_console, say
from pipeline.telemetry.costs import ON_DEVICE

if TYPE_CHECKING:
    from pipeline.runs.selfcheck import SelfCheck


def print_summary(report: Report, output: str, max_failure_rate: float | None = None) -> None:
    """Print the counts of the run as a table, then the places of the tables. `max_failure_rate`: if it judges them."""
    table = Table(title=f"run {report.run_id}", show_header=False)
    table.add_row("images", f"{report.num_images:,} ({describe(report.counts)})")
    table.add_row("ok", f"{report.num_ok:,}")
    budget = "" if max_failure_rate is None else f" (budget {max_failure_rate:.2%})"
    table.add_row("failed", f"{report.num_failed:,}{budget}")
    for code, count in report.failed_by_code.items():
        table.add_row(f"  {code}", f"{count:,}")
    if report.num_removed:
        table.add_row("removed", f"{report.num_removed:,}")
    table.add_row("segments", f"{report.num_segments:,}")
    table.add_row("shards", f"{report.num_shards:,} ({report.num_shards_done_before:,} done before)")
    table.add_row("images/s", f"{report.images_per_second:,.2f} in {report.seconds:,.1f} s, model load excluded")
    if report.step_ms:
        add_steps(table, report.step_ms)
    if report.device_busy:
        least = min(report.device_busy, key=report.device_busy.__getitem__)
        mean = sum(report.device_busy.values()) / len(report.device_busy)
        actors = f"{len(report.device_busy)} actors; least busy: {least} with {report.device_busy[least]:.0%}"
        table.add_row("devices busy", f"{mean:.0%} of the time, mean of {actors}")
    console = output_console()
    console.print(table)
    for name, version in sorted(report.table_versions.items()):
        each = report.part_bytes.get(name, 0) / max(1, report.num_images)
        place = f"{output.rstrip('/')}/{name} (Delta table, version {version})"
        console.print(f"{name}: {place}, {each:,.0f} bytes an image")


def add_steps(table: Table, step_ms: Mapping[str, float]) -> None:
    """Add a row with the time of each step for one image."""
    steps = ", ".join(f"{step} {ms:,.1f}" for step, ms in step_ms.items())
    table.add_row("ms per image", f"{steps} ({', '.join(ON_DEVICE)}: time on the device; other steps: CPU time)")


def print_selfcheck(check: SelfCheck) -> None:
    """Print the differences to plain PyTorch, then the speed."""
    compared, timing = check.comparison, check.timing
    table = Table(title=f"{check.device}, {check.precision}, against plain PyTorch on a CPU in fp32", show_header=False)
    table.add_row("images compared", f"{compared.num_images}")
    verdict = "rounding" if check.passes else "MORE THAN ROUNDING"
    table.add_row("class logits", f"differ by {compared.class_logits:.1e} at most")
    table.add_row("mask logits", f"differ by {compared.mask_logits:.1e} at most")
    table.add_row("classes", f"{compared.other_classes:.1e} of the queries have another most likely class")
    table.add_row("mask bits", f"{compared.flipped:.1e} of the bits differ")
    table.add_row("verdict", verdict)
    only = f", {compared.segments_only_here} found only here" if compared.segments_only_here else ""
    table.add_row("segments", f"{compared.segments_alike} of {compared.segments} match{only}")
    steps = ", ".join(f"{step} {ms:,.1f}" for step, ms in timing.device_ms.items())
    table.add_row(
        "images/s", f"{timing.images_per_second:,.2f} with one model actor; ms per image on the device: {steps}"
    )
    lowered = timing.max_batch_pixels
    memory = f"; memory ran out: --max-batch-pixels {lowered}" if lowered is not None else ""
    table.add_row("batches", f"at most {timing.batch_size} images{memory}")
    output_console().print(table)


def print_preview(preview: Preview) -> None:
    """Print the number of images and encoded bytes by reason."""
    table = Table("reason", "images", "GiB", "in the run")
    for reason, number in sorted(preview.counts.items()):
        gib = preview.size_bytes[reason] / 2**30
        table.add_row(reason, f"{number:,}", f"{gib:,.3f}", "yes" if reason in preview.planned else "no")
    console = output_console()
    if preview.note is not None:
        console.print(preview.note)
    console.print(table)
    console.print(f"{sum(preview.counts.get(reason, 0) for reason in preview.planned):,} images would be segmented")


def print_roll_back(done: RollBack) -> None:
    """Print how many rows the roll-back removed, or would remove."""
    rows = " and ".join(f"{number:,} rows of {table}" for table, number in done.rows.items())
    what = f"removed {rows}" if done.done else f"has {rows}; to remove these rows, add --yes"
    say(f"run {done.run_id}, finished {done.finished_at}: {what}")
