"""What a OneFormer does with its task; that it computes the right numbers is shown in test_oneformer_parity."""

import pytest
import torch

from m2f_core.config.labels import TASKS
from m2f_core.config.oneformer import TASK_TOKENS, OneFormerConfig
from m2f_core.layers.linear import Float32Linear
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.oneformer.oneformer import build_model
from m2f_core.model.oneformer.task_encoder import TaskEncoder, task_row
from tests.support.seeded_model import seeded_model

PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def test_a_row_is_the_sentence_and_zeros() -> None:
    for task in TASKS:
        row = task_row(task, 77)
        assert row.shape == (77,) and row.tolist() == [*TASK_TOKENS[task], *[0] * (77 - len(TASK_TOKENS[task]))]


def test_the_task_can_be_changed_and_is_no_part_of_the_weights() -> None:
    model = seeded_model(OneFormerConfig.tiny(), seed=0)
    first = model(PIXELS).masks_queries_logits
    found = []
    for task in TASKS:
        address = model.task_encoder.tokens_1T.data_ptr()
        model.set_task(task)
        assert model.task_encoder.tokens_1T.data_ptr() == address, "where a recorded graph reads it"
        found.append(model(PIXELS).masks_queries_logits)
    assert torch.equal(found[0], first), "panoptic, unless it is told"
    assert (found[0] - found[1]).abs().max() > 0.1 < (found[1] - found[2]).abs().max()
    assert not any("tokens" in name for name in model.state_dict())


def test_a_prepared_model_answers_for_its_task() -> None:
    expected = seeded_model(OneFormerConfig.tiny(), seed=0)
    expected.set_task("semantic")
    model = prepare_for_inference(seeded_model(OneFormerConfig.tiny(), seed=0), torch.device("cpu"), "fp32", "semantic")
    torch.testing.assert_close(
        model(PIXELS).masks_queries_logits, expected(PIXELS).masks_queries_logits, rtol=0, atol=2e-4
    )


def test_under_autocast_the_numbers_of_the_task_are_exact() -> None:
    encoder = TaskEncoder(77, 32)
    expected = encoder()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(), expected)
    assert sum(isinstance(module, Float32Linear) for module in encoder.modules()) == 2


def test_a_model_without_values_knows_its_task() -> None:
    """As a checkpoint builds it before it has read the weights."""
    with torch.device("meta"):
        model = build_model(OneFormerConfig.tiny())
    assert torch.equal(model.task_encoder.tokens_1T[0], torch.from_numpy(task_row("panoptic", 77)))


def test_labels_are_refused() -> None:
    model = seeded_model(OneFormerConfig.tiny(), seed=0)
    with pytest.raises(ValueError, match="no loss"):
        model(PIXELS, [torch.ones(1, 64, 96)], [torch.zeros(1, dtype=torch.long)])
