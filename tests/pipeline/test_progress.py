"""The line people watch."""

import time

from pipeline.journal import PartRecord, Receipt, Totals
from pipeline.progress import Progress

PARTS = {table: PartRecord("path", 3, 1, "") for table in ("images", "segments")}


def test_the_line_counts_images_failures_and_time_left(monkeypatch):
    totals = Totals()
    totals.add(Receipt(0, 10, {"decode_failed": 1}, PARTS, 0, 0))  # by an earlier driver: no part of the rate
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(100, totals, 10)
    assert progress.rest() == "0.00 images/s, 1 failed, time left unknown"
    now[0] += 20
    totals.add(Receipt(1, 40, {"not_found": 2}, PARTS, 0, 0))
    assert progress.rest() == "2.00 images/s, 3 failed, 0:00:25 left"


def test_without_a_terminal_there_is_a_line_per_interval(capfd):
    totals = Totals()
    with Progress(2, totals, 0.05) as progress:
        totals.add(Receipt(0, 2, {}, PARTS, 0, 0))
        progress.update()
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("2/2 images, ") for line in lines[1:])
