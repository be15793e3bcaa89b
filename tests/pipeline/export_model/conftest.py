"""A checkpoint of each family, small and seeded."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.config.model_config import ModelConfig
from m2f_core.config.oneformer import OneFormerConfig
from tests.support.inputs import make_model
from tests.support.seeded_eomt import make_eomt, tiny_dinov3_config

# Exporting takes seconds a layer.
SMALL_RESNET = ResNetConfig(embedding_size=16, hidden_sizes=(32, 64, 96, 128), depths=(1, 1, 1, 1))
SHORT = {"encoder_layers": 1, "decoder_layers": 2}


def small(tiny: Callable[..., ModelConfig], id2label: dict[int, str], **fields: object) -> ModelConfig:
    return replace(tiny(id2label=id2label), backbone_config=SMALL_RESNET, **fields)


def of_swin(id2label: dict[int, str]) -> ModelConfig:
    return replace(Mask2FormerConfig.tiny(id2label=id2label), **SHORT)


MAKERS: dict[str, Callable[[Path], None]] = {
    "mask2former": partial(make_model, tiny=partial(small, Mask2FormerConfig.tiny, **SHORT)),
    "mask2former with swin": partial(make_model, tiny=of_swin),
    "maskformer": partial(make_model, tiny=partial(small, MaskFormerConfig.tiny)),
    "oneformer": partial(make_model, tiny=partial(small, OneFormerConfig.tiny, **SHORT)),
    "eomt": make_eomt,
    "eomt on dinov3": partial(make_eomt, config=tiny_dinov3_config()),
    "eomt for windows": partial(make_eomt, task="semantic"),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in `MAKERS` -> its folder."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def made(name: str) -> Path:
        if not (folder / name).exists():
            MAKERS[name](folder / name)
        return folder / name

    return made
