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
    kept = f", kept logits of {verdict.num_rows['logits']:,} images" if "logits" in verdict.num_rows else ""
    share = verdict.num_checked / verdict.num_items if verdict.num_items else 1.0
    what = f"{verdict.num_checked:,} of {verdict.num_items:,} shards and merged files ({share:.1%})"
    if verdict.num_unread:
        what += f"; {verdict.num_unread:,} could not be read"
    found = "nothing wrong" if verdict.is_good else f"{len(verdict.findings)} kinds of faults"
    seen, all_runs = len(verdict.runs_seen), len(verdict.runs)
    runs = f"{all_runs} runs" if seen == all_runs else f"{seen} of {all_runs} runs"
    say(f"{found}: {images:,} images and {segments:,} segments{kept} of {runs} checked, {what}")
