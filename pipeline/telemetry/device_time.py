"""How long a model actor has held its device, and how long the device has worked: two counters, and a report.

Their quotient over any span of time is the share in which the device was busy. A thread counts the time that is held,
because an actor without shards must count it too: then the device is idle.
"""

import threading
import time

from pipeline.telemetry.in_flight import Hold
from pipeline.telemetry.instruments import SET_EVERY_SECONDS
from pipeline.telemetry.metrics import DEVICE_BUSY, DEVICE_RESERVED


class DeviceTime:
    """Counts from its construction on until the process ends."""

    def __init__(self, device: str, device_name: str, hold: Hold):
        """`device`: cuda or cpu. `hold` is told every few seconds for how long the device of this name was held."""
        self.device, self.device_name, self.hold = device, device_name, hold
        self.unreported = 0.0
        self.counted = time.monotonic()
        self.lock = threading.Lock()
        threading.Thread(target=self._keep_counting, daemon=True, name="device time").start()

    def busy(self, seconds: float) -> None:
        """The device has worked for so long."""
        DEVICE_BUSY.add(seconds, device=self.device)
        self._count_held()

    def _count_held(self) -> None:
        with self.lock:
            now = time.monotonic()
            DEVICE_RESERVED.add(now - self.counted, device=self.device)
            self.unreported += now - self.counted
            self.counted = now

    def _keep_counting(self) -> None:
        while True:
            time.sleep(SET_EVERY_SECONDS)
            self.report()

    def report(self) -> None:
        """Report the time since the last report; call at the end of each shard, so that the last shard counts too."""
        self._count_held()
        with self.lock:
            held, self.unreported = self.unreported, 0.0
        self.hold(self.device_name, held)
