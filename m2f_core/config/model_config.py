"""What the configurations of all families of models have in common. Does not import torch."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol


class ModelConfig(Protocol):
    """A frozen dataclass whose fields have the names of a Hugging Face config.json."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id2label(self) -> dict[int, str]: ...

    @property
    def num_queries(self) -> int: ...

    @property
    def num_labels(self) -> int:
        """Number of classes, the "no object" class not counted."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers can read."""
        ...
