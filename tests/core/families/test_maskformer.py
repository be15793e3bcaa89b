"""MaskFormer's files are told from other files, and what they do not show is as in its authors' code."""

from pathlib import Path

import numpy as np
import pytest

from m2f_core.checkpoints.checkpoint import Checkpoint, CheckpointError
from m2f_core.config.fields import ConfigError
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.families.maskformer.original import infer_config
from m2f_core.families.registry import family_of_arrays
from tests.support.detectron2_pickles import write_pickle

HEAD = "sem_seg_head."


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("predictor.transformer.decoder.layers.0.norm1.weight", "MaskFormer"),
        ("predictor.transformer_ffn_layers.0.norm.weight", "Mask2Former"),
    ],
)
def test_the_layers_of_the_predictor_tell_the_families_apart(name: str, family: str) -> None:
    found = family_of_arrays([f"{HEAD}predictor.query_embed.weight", HEAD + name])
    assert found is not None
    assert found.name == family


@pytest.mark.parametrize("part", ["pixel_decoder.transformer.", "predictor.transformer.encoder."])
def test_a_transformer_encoder_is_refused(part: str, tmp_path: Path) -> None:
    names = [HEAD + "predictor.transformer.decoder.norm.weight", f"{HEAD}{part}encoder.layers.0.linear1.weight"]
    path = write_pickle(tmp_path / "model_final_000000.pkl", {name: np.zeros((2, 2), np.float32) for name in names})
    with pytest.raises(CheckpointError, match="has a transformer encoder"):
        Checkpoint(path).check()


def test_a_published_pickle_has_the_published_configuration() -> None:
    """From the shapes of its arrays: what training drops, and the loss, are taken as in the original."""
    import torch

    from m2f_core.families.maskformer.names import detectron2_names
    from m2f_core.model.maskformer.maskformer import build_model

    config = MaskFormerConfig.swin_tiny(num_labels=133)
    with torch.device("meta"):
        model = build_model(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        source = detectron2_names(name)
        shapes[source.names[0]] = (tensor.shape[0] * (1 if source.third is None else 3), *tensor.shape[1:])
    found = infer_config(shapes)
    assert found.id2label[0] == "person"
    assert found == MaskFormerConfig.swin_tiny(id2label=found.id2label)
    with pytest.raises(ConfigError, match="query_embed"):
        infer_config({name: shape for name, shape in shapes.items() if "query_embed" not in name})
