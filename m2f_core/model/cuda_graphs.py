"""A forward pass recorded once for each shape of its input, and played back: no time goes into starting kernels.

A graph holds for one shape only, so images are batched by padded size and most batches of a run have a few shapes.
It has not run on a GPU yet; where recording fails, a warning says so and the model goes on as usual.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Any]
# A recording costs about three forward passes and the memory of its results; a shape that is rare does not pay.
_SEEN_BEFORE = 2
_MOST_GRAPHS = 64


class GraphedForward:
    """`forward` with the same results, which stand until the next call: whoever needs them longer copies them."""

    def __init__(self, forward: Forward, record: "Callable[[Forward, Tensor], Forward] | None" = None):
        """`record` gives a function that plays back `forward` for inputs of the shape of its example."""
        self.forward = forward
        self.record = record or CudaRecorder()
        self.seen: Counter[torch.Size] = Counter()
        self.recorded: dict[torch.Size, Forward] = {}
        self.too_large: set[torch.Size] = set()
        self.works = True

    def __call__(self, pixels_B3HW: Tensor) -> Any:
        shape = pixels_B3HW.shape
        if shape not in self.recorded and self._pays(shape):
            try:
                self.recorded[shape] = self.record(self.forward, pixels_B3HW)
            except torch.OutOfMemoryError:
                self.too_large.add(shape)  # a graph holds memory of its own: without one the batch may well fit
                logger.warning(f"no memory to record a CUDA graph for {tuple(shape)}: started kernel by kernel")
            except Exception as error:
                self.works = False
                logger.warning(f"batches are started kernel by kernel, a CUDA graph cannot be recorded: {error}")
        return self.recorded.get(shape, self.forward)(pixels_B3HW)

    def _pays(self, shape: torch.Size) -> bool:
        self.seen[shape] += 1
        is_frequent = self.seen[shape] > _SEEN_BEFORE and shape not in self.too_large
        return self.works and is_frequent and len(self.recorded) < _MOST_GRAPHS

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self.recorded.clear()
        self.seen.clear()
        self.too_large.clear()


class CudaRecorder:
    """Records on the current CUDA device. All graphs share one pool of memory, as only one is played at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, forward: Forward, example: Tensor) -> Forward:
        still = example.clone()  # the address that the graph reads
        beside = torch.cuda.Stream(device=example.device)
        beside.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(beside):  # libraries choose and load their kernels, Triton compiles
            for _ in range(2):
                forward(still)
        torch.cuda.current_stream(example.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # Meanwhile other threads pin memory for decoded images, which a capture would forbid them too by default.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            output = forward(still)

        def play(pixels_B3HW: Tensor) -> Any:
            still.copy_(pixels_B3HW)
            graph.replay()
            return output

        return play
