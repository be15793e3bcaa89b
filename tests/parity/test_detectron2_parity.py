"""transformers' weights under the original code's names, in its kind of file, load to the same network.

Both files say the same to us, and what we save of the pickle transformers reads with the same outputs as before.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

from tests.parity.test_model_parity import (
    END_TO_END_TOLERANCE,
    SIZES,
    SMALL,
    SMALL_SWIN,
    STAGES,
    assert_close,
    image_batch,
    jittered,
    one_thread_no_grad,  # noqa: F401  for all tests here
)
from tests.support.detectron2_pickles import original_names, write_pickle

BACKBONES = {
    "swin": transformers.SwinConfig(**SMALL_SWIN, drop_path_rate=0.3, out_features=STAGES),
    "resnet": transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 64, 128], depths=[1, 2, 2, 1], out_features=STAGES
    ),
}


@pytest.mark.parametrize(
    "older_code",
    [
        pytest.param(False, id="today's names"),
        pytest.param(True, id="older names", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("num_queries", [200, pytest.param(100, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_pickle_is_the_folder(tmp_path: Path, backbone: str, num_queries: int, older_code: bool) -> None:
    theirs = jittered(BACKBONES[backbone], **{**SMALL, "num_queries": num_queries})
    theirs.save_pretrained(tmp_path / "hub")
    weights = original_names(
        load_file(tmp_path / "hub" / "model.safetensors"), static_query=older_code, old_head=older_code
    )
    from_pickle = load_checkpoint(write_pickle(tmp_path / "model_final_123456.pkl", weights))
    from_folder = load_checkpoint(tmp_path / "hub")
    assert Checkpoint(tmp_path / "model_final_123456.pkl").config == Checkpoint(tmp_path / "hub").config

    save_checkpoint(from_pickle, tmp_path / "ours")
    again, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all("criterion" in key or "swin.layernorm" in key for key in info["missing_keys"])

    for size in SIZES:
        pixel_values = image_batch(*size)
        mine, same, expected = from_pickle(pixel_values), from_folder(pixel_values), theirs(pixel_values)
        assert torch.equal(mine.class_queries_logits, same.class_queries_logits)
        assert torch.equal(mine.masks_queries_logits, same.masks_queries_logits)
        assert_close(mine.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
        assert_close(mine.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")
        output = again.eval()(pixel_values)
        assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
        assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)
