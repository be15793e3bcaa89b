"""Print a verdict: a line for each kind of finding, what was not checked, and last what was checked."""

from pipeline.telemetry.console import say
from pipeline.verify.verify import Verdict


def print_verdict(verdict: Verdict) -> None:
    """Print the findings, the notes and a last line for people."""
    for finding in verdict.findings:
        say(f"WRONG: {finding}")
    for note in verdict.notes:
        say(note)
    images, segments = (verdict.num_rows[name] for name in ("images", "segments"))
    share = verdict.num_checked / verdict.num_items if verdict.num_items else 1.0
    what = f"{verdict.num_checked:,} of {verdict.num_items:,} shards and merged files ({share:.1%})"
    found = "nothing wrong" if verdict.is_good else f"{len(verdict.findings)} kinds of faults"
    say(f"{found}: {images:,} images and {segments:,} segments of {len(verdict.runs)} runs checked, {what}")
