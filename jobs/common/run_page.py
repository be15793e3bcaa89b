"""Write the page of a run that has just finished, in a process of its own.

The run is published, and nothing that happens to its page may change that: neither an error, nor a crash of a library
that draws, nor memory, nor time, nor a signal. So the page gets a process, a time limit, and a warning in place of an
error.
"""

import logging
import os
import subprocess
import sys

from jobs.common.ends import sigterm_raises
from pipeline.page.extra import HOW_TO_INSTALL, is_installed
from pipeline.telemetry.console import say

logger = logging.getLogger(__name__)

PAGE_SECONDS = 600.0


def write_run_page(output: str, run_id: str, images: str = "embed", seconds: float = PAGE_SECONDS) -> bool:
    """Write the page of the run into its folder, and print where it lies. False, and a warning, if there is none.

    `images` is --images of jobs/report.py.
    """
    if not is_installed():
        logger.info("run %s gets no report page, for which %s; --no-page says so in advance", run_id, HOW_TO_INSTALL)
        return False
    # -P: a module of the working folder is not taken for one of this program or of Python.
    command = [sys.executable, "-P", "-m", "jobs.report", "--tables", output, "--run-id", run_id]
    command += ["--images", images]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with sigterm_raises():
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
    except subprocess.TimeoutExpired:
        why = f"it was not done in {seconds:g} s"
    except OSError as error:
        why = str(error)
    except (KeyboardInterrupt, SystemExit):
        why = "it was interrupted"
    else:
        if done.returncode == 0:
            say(done.stdout.strip())
            return True
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"its process ended with {done.returncode}"
    logger.warning("run %s is finished, but has no report page: %s (jobs/report.py writes it later)", run_id, why)
    return False
