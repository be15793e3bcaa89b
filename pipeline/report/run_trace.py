"""What a trace shows of a run: the driver turns receipts and the stages' reports into spans."""

import logging
import time
from collections.abc import Callable
from types import TracebackType

from pipeline.commit.receipt import Receipt
from pipeline.telemetry.in_flight import Visit
from pipeline.telemetry.spans import Spans

logger = logging.getLogger(__name__)


class RunTrace:
    """A context manager around an attempt. Without `spans` it does nothing."""

    def __init__(self, spans: Spans | None, drain: Callable[[], list[Visit]], attempt: int):
        """`drain`: the visits of stages since its last call."""
        self.spans, self.drain, self.attempt = spans, drain, attempt
        self.began = time.time()
        self.arrivals: dict[int, float] = {}  # when the first stage took each shard that has no span yet
        self.receipts: list[Receipt] = []  # of shards that have no span yet

    def __enter__(self) -> "RunTrace":
        return self

    def add(self, receipt: Receipt) -> None:
        """A shard is done. Its span follows with `pass_on`, because it begins with the first visit."""
        if self.spans is not None:
            self.receipts.append(receipt)

    def pass_on(self) -> None:
        """Send the spans of all visits and shards that have ended; call every few seconds."""
        try:
            self._pass_on()
        except Exception:  # whatever OpenTelemetry raises: a run does not depend on its trace
            logger.warning("the trace of this run ends here, and the run goes on", exc_info=True)
            self.spans = None

    def _pass_on(self) -> None:
        if self.spans is None:
            return
        receipts, self.receipts = self.receipts, []
        for visit in self.drain():
            self.spans.visit(visit)
            self.arrivals[visit.shard] = min(visit.began, self.arrivals.get(visit.shard, visit.began))
        for receipt in receipts:
            began = self.arrivals.pop(receipt.shard, receipt.started)
            attributes = {
                "m2f.images": receipt.num_images,
                "m2f.images_failed": receipt.num_failed,
                "m2f.segments": receipt.parts["segments"].num_rows,
                "m2f.model_actor": receipt.model_actor,
            }
            self.spans.shard(receipt.shard, began, receipt.finished, attributes)

    def run_is_finished(self, created: float, num_images: int, num_failed: int) -> None:
        """Send the span of the run, which began when it was planned."""
        if self.spans is not None:
            self.spans.run(created, time.time(), {"m2f.images": num_images, "m2f.images_failed": num_failed})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.spans is not None:
            self.pass_on()
            text = None if kind is None else f"{kind.__name__}: {error}"
            self.spans.attempt(self.attempt, self.began, time.time(), text)
            self.spans.close()
