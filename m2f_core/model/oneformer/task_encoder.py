"""The task token of a OneFormer: what its queries start from, made of the numbers of a sentence.

Legend: T length of the sentence, D width of the decoder.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.config.labels import Task
from m2f_core.config.oneformer import TASK_TOKENS
from m2f_core.layers.linear import Float32Linear


def task_row(task: Task, length: int) -> NDArray[np.float32]:
    """The sentence of a task as numbers [length]; see `TASK_TOKENS`."""
    row = np.zeros(length, np.float32)
    row[: len(TASK_TOKENS[task])] = TASK_TOKENS[task]
    return row


class TaskEncoder(nn.Module):
    """Two linear layers that read the numbers of the tokens as they are, without an embedding.

    The numbers go up to 49,407, so the layers compute in float32 also under autocast: in bfloat16 they would be rounded
    to multiples of 256.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        # Of numpy, so that the row has values even in a model that is built on "meta".
        self.register_buffer("tokens_1T", torch.from_numpy(task_row("panoptic", length))[None], persistent=False)
        self.tokens_1T: Tensor
        self.fc1 = Float32Linear(length, dim)
        self.fc2 = Float32Linear(dim, dim)

    def set_task(self, task: Task) -> None:
        """In place, so that a recorded CUDA graph reads it."""
        self.tokens_1T.copy_(torch.from_numpy(task_row(task, self.tokens_1T.shape[1]))[None])

    def forward(self) -> Tensor:
        """The task token, [1, D]."""
        return self.fc2(F.relu(self.fc1(self.tokens_1T)))
