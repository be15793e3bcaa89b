"""A job that makes a run: it keeps a record of the night, shows progress and prints a summary."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.cluster.environment import set_ray_environment
from pipeline.config import Settings
from pipeline.errors import JobEnd
from pipeline.report.progress import Progress
from pipeline.telemetry.log_lines import show_log_lines

if TYPE_CHECKING:
    from pipeline.nights.night import Night
    from pipeline.runs.check import Checked


class NightJob:
    """One night: makes the run, and keeps a record of the night."""

    def __init__(self, settings: Settings, command: Sequence[str]):
        """`settings` say where the run lies and how it is shown."""
        self.settings, self.command = settings, command
        self.progress = Progress(settings.progress_seconds, settings.log_format)
        self.night: Night | None = None
        self.finished_run: str | None = None  # by this job

    def run(self, check: "Callable[[], Checked] | None" = None) -> int:
        """Returns the exit code. `check`: see pipeline.segment_bucket."""
        set_ray_environment()
        show_log_lines(self.settings.log_format)
        with self.progress:
            self.progress.phase("loading the program")
            # Imported only now: --help should not wait, Ray reads its environment when it is imported, and a night that
            # is killed while PyTorch loads should have left its record.
            from pipeline.nights.night import Night
            from pipeline.runs.places import usable_output, with_whole_places

            self.night = Night(self.command)
            self.night.start(usable_output(with_whole_places(self.settings)))
            from pipeline.report.summary import print_summary
            from pipeline.segment_bucket import segment_bucket

            report = segment_bucket(self.settings, self.progress, self.night.tell, check)
        if report is None:
            return 0
        print_summary(report, self.settings.output, self.settings.max_failure_rate)
        self.finished_run = report.run_id
        return report.exit_code(self.settings.max_failure_rate)

    def kept(self) -> str:
        """What a stopped job says."""
        return f"{self.progress.kept()}; run the same command again to continue"

    def ended(self, end: JobEnd, exit_code: int, reason: str) -> None:
        """Take the end down, if the night has started."""
        if self.night is not None:
            too_many = "more images failed than --max-failure-rate allows" if end == "finished" and exit_code else ""
            self.night.end(end, exit_code, reason or too_many, self.progress.counts())
