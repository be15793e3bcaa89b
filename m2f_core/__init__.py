"""Mask2Former in plain PyTorch. Here are the documented names, as a user of transformers knows them.

They are loaded when they are used, so that importing a part of this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2f_core.hf.config import Mask2FormerConfig as Mask2FormerConfig
    from m2f_core.hf.config import ResNetConfig as ResNetConfig
    from m2f_core.hf.config import SwinConfig as SwinConfig
    from m2f_core.hf.image_processor import Mask2FormerImageProcessor as Mask2FormerImageProcessor
    from m2f_core.hf.modeling import Mask2FormerForUniversalSegmentation as Mask2FormerForUniversalSegmentation
    from m2f_core.hf.modeling import Mask2FormerModel as Mask2FormerModel

__version__ = "0.1.0"  # of m2f-pipeline as a whole: pyproject.toml, --version and run.json read it here

_MODULES = {
    "Mask2FormerConfig": "m2f_core.hf.config",
    "ResNetConfig": "m2f_core.hf.config",
    "SwinConfig": "m2f_core.hf.config",
    "Mask2FormerImageProcessor": "m2f_core.hf.image_processor",
    "Mask2FormerForUniversalSegmentation": "m2f_core.hf.modeling",
    "Mask2FormerModel": "m2f_core.hf.modeling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'm2f_core' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
