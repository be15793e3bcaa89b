"""Record a forward pass once for each input shape and play it back, which saves the time to start kernels.

A CUDA graph fits one shape only; images are batched by padded size, so most batches of a run have one of a few shapes.
This has not run on a GPU yet. If recording fails, a warning says so and the model runs as usual.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Any]
# A recording costs about three forward passes and the memory of its results, so rare shapes are not recorded.
_SEEN_BEFORE = 2
_MOST_GRAPHS = 64


class GraphedForward:
    """`forward` with the same results; the next call overwrites them, so copy results that are needed longer."""

    def __init__(self, forward: Forward, record: "Callable[[Forward, Tensor], Forward] | None" = None):
        """`record` returns a function that plays back `forward` for inputs with the shape of its example."""
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
                self.too_large.add(shape)  # a graph needs its own memory; without a graph the batch may fit
                logger.warning(f"too little memory to record a CUDA graph for {tuple(shape)}; running without")
            except Exception as error:
                self.works = False
                logger.warning(f"a CUDA graph cannot be recorded, so batches run without graphs: {error}")
        return self.recorded.get(shape, self.forward)(pixels_B3HW)

    def _pays(self, shape: torch.Size) -> bool:
        self.seen[shape] += 1
        is_frequent = self.seen[shape] > _SEEN_BEFORE and shape not in self.too_large
        return self.works and is_frequent and len(self.recorded) < _MOST_GRAPHS

    def forget(self) -> None:
        """Free the memory of all recordings."""
        self.recorded.clear()
        self.seen.clear()
        self.too_large.clear()


class CudaRecorder:
    """Records on the current CUDA device. All graphs share one memory pool, because only one is played at a time."""

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
        # Meanwhile other threads pin memory for decoded images; by default, a capture would forbid that.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            output = forward(still)

        def play(pixels_B3HW: Tensor) -> Any:
            still.copy_(pixels_B3HW)
            graph.replay()
            return output

        return play
