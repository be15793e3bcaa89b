"""What holds for the network whatever its weights are. That it is Mask2Former is shown in tests/parity."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.model.contract import SegmentationOutput
from m2f_core.model.mask2former import Mask2Former, build_model
from m2f_core.model.pixel_decoder import cell_centres, sine_position_encoding
from m2f_core.model.swin import STRANGER_LOGIT, join_windows, split_windows, stranger_mask
from m2f_core.model.transformer_decoder import open_empty_rows
from tests.support.places import SHARED_DATA
from tests.support.seeded_model import seeded_model

PHOTOS = SHARED_DATA / "photos"
PHOTO_NAMES = ["sam_dog.jpg", "skimage_coffee.png", "usgov_15673749081_767a7fa63a_k.jpg"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Mask2Former:
    return seeded_model(Mask2FormerConfig.tiny(), seed=0)


def predict(model: Mask2Former, pixel_values: Tensor) -> SegmentationOutput:
    with torch.inference_mode():
        return model(pixel_values)


def logits(output: SegmentationOutput) -> tuple[Tensor, Tensor]:
    return output.class_queries_logits, output.masks_queries_logits


def random_images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (64, 64), (97, 33), (128, 224)], ids=str)
def test_any_size_of_image(model: Mask2Former, size: tuple[int, int]) -> None:
    output = predict(model, random_images(1, *size))
    assert output.class_queries_logits.shape == (1, 20, 9)
    assert output.masks_queries_logits.shape == (1, 20, -(-size[0] // 4), -(-size[1] // 4))
    assert output.class_queries_logits.isfinite().all()
    assert output.masks_queries_logits.isfinite().all()


def test_a_batch_is_its_images_one_by_one(model: Mask2Former) -> None:
    """The promise on which the pipeline batches images: no image sees its neighbours."""
    images = random_images(3, 70, 90)
    together = predict(model, images)
    for index in range(3):
        alone = predict(model, images[index : index + 1])
        for got, expected in zip(logits(together), logits(alone), strict=True):
            torch.testing.assert_close(got[index], expected[0], rtol=0, atol=1e-3)
    first, second, _ = together.masks_queries_logits
    assert not torch.allclose(first, second, atol=0.1), "the images must differ"


def test_bfloat16_autocast_is_close_to_float32(model: Mask2Former) -> None:
    images = random_images(2, 64, 96)
    exact = predict(model, images)
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        rounded = predict(model, images)
    for got, expected in zip(logits(rounded), logits(exact), strict=True):
        assert got.dtype == torch.float32
        assert got.isfinite().all()
        # Some attention cells flip, so single cells may be far off; the bulk may not.
        assert (got - expected).abs().mean() < 0.03 * expected.std()
    flipped = (rounded.masks_queries_logits >= 0) != (exact.masks_queries_logits >= 0)
    assert flipped.float().mean() < 0.01


def test_the_last_of_all_predictions_is_the_only_one(model: Mask2Former) -> None:
    images = random_images(1, 64, 64)
    with torch.inference_mode():
        mask_features, maps = model.pixel_decoder(model.backbone(images))
        predictions = model.transformer_decoder(mask_features, maps, every_prediction=True)
        (last,) = model.transformer_decoder(mask_features, maps)
    assert len(predictions) == model.config.decoder_layers
    assert torch.equal(predictions[-1].mask_logits, last.mask_logits)
    assert not torch.equal(predictions[0].mask_logits, last.mask_logits)


def test_resizing_mask_features_is_resizing_masks(model: Mask2Former) -> None:
    """The decoder resizes the features and multiplies; the definition multiplies and resizes."""
    generator = torch.Generator().manual_seed(0)
    features, queries = (torch.randn(shape, generator=generator) for shape in [(2, 64, 23, 31), (2, 20, 64)])
    decoder = model.transformer_decoder
    with torch.inference_mode():
        masks = decoder.predict_masks(queries, features)
        by_definition = F.interpolate(masks, size=(6, 8), mode="bilinear", align_corners=False).flatten(2)
        resized = F.interpolate(features, size=(6, 8), mode="bilinear", align_corners=False).flatten(2)
        may_attend = decoder.attended_cells(queries, resized)
    clear = by_definition.abs() > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(may_attend[clear], open_empty_rows(by_definition.sigmoid() >= 0.5)[clear])


def test_a_query_without_a_cell_reads_all() -> None:
    rows = torch.tensor([[[True, False], [False, False], [True, True]]])
    assert open_empty_rows(rows).tolist() == [[[True, False], [True, True], [True, True]]]


def test_windows_come_back() -> None:
    x = torch.randn(2, 6, 9, 5)
    windows = split_windows(x, 3)
    assert windows.shape == (2 * 2 * 3, 9, 5)
    assert torch.equal(windows[1].view(3, 3, 5), x[0, 0:3, 3:6])
    assert torch.equal(join_windows(windows, 3, 6, 9), x)


def test_strangers_are_cells_that_were_not_neighbours() -> None:
    """After rolling a 4x4 map by 1, only the last row and column come from the other end."""
    mask = stranger_mask(4, 4, size=2, shift=1, device=torch.device("cpu"))
    assert mask.shape == (4, 1, 4, 4)
    assert not mask[0].any(), "the first window was not torn"
    right = mask[1, 0]  # left column [0, 2] and right column [1, 3] are of different ends
    assert right[0].tolist() == [0, STRANGER_LOGIT, 0, STRANGER_LOGIT]
    assert mask[3, 0].count_nonzero() == 12, "in the corner every cell is alone"


def test_positions_are_literal() -> None:
    code = sine_position_encoding(2, 3, 8, torch.device("cpu"))
    assert code.shape == (1, 6, 8)
    bottom_left = code[0, 3]
    y, x = 2 * torch.pi, 2 * torch.pi / 3  # the last of 2 rows, the first of 3 columns
    expected = [f(v / scale) for v in (y, x) for scale in (1, 100) for f in (np.sin, np.cos)]
    torch.testing.assert_close(bottom_left, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-5)
    assert cell_centres(1, 2, torch.device("cpu")).tolist() == [[0.25, 0.5], [0.75, 0.5]]


@pytest.mark.parametrize(
    ("variant", "millions"), [("swin_tiny", 47.4), ("swin_small", 68.8), ("swin_base", 106.9), ("swin_large", 215.5)]
)
def test_published_sizes(variant: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(getattr(Mask2FormerConfig, variant)())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_gradients_reach_every_parameter() -> None:
    """Nothing of the network may be cut off from the loss: neither that of the last prediction nor that of all."""
    model = seeded_model(Mask2FormerConfig.tiny(train_num_points=128), seed=0).train()
    masks = F.interpolate(random_images(1, 4, 4), size=(64, 64))[0] > 0

    def without_gradient(loss: Tensor) -> list[str]:
        model.zero_grad()
        loss.backward()
        return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]

    assert without_gradient(sum(x.square().mean() for x in logits(model(random_images(1, 64, 64))))) == []
    assert without_gradient(model(random_images(1, 64, 64), [masks], [torch.tensor([0, 3, 7])]).loss) == []


def test_what_is_not_asked_for_is_not_there(model: Mask2Former) -> None:
    images, targets = random_images(1, 64, 64), ([torch.ones(1, 64, 64, dtype=torch.bool)], [torch.tensor([0])])
    plain = predict(model, images)
    extras = {name for name in vars(plain) if not name.endswith("_queries_logits")}
    assert all(getattr(plain, name) is None for name in extras)
    with torch.inference_mode():
        asked = model(images, *targets, output_hidden_states=True, output_auxiliary_logits=True, output_queries=True)
    assert all(getattr(asked, name) is not None for name in extras)
    # Labels and options take nothing from the answer.
    assert all(torch.equal(got, expected) for got, expected in zip(logits(asked), logits(plain), strict=True))
    with pytest.raises(ValueError, match="together"):
        model(images, mask_labels=targets[0])


def test_the_configuration_may_ask_for_auxiliary_logits() -> None:
    model = seeded_model(Mask2FormerConfig.tiny(output_auxiliary_logits=True), seed=0)
    images = random_images(1, 64, 64)
    assert len(predict(model, images).auxiliary_logits) == model.config.decoder_layers - 1
    with torch.inference_mode():
        assert model(images, output_auxiliary_logits=False).auxiliary_logits is None


def test_a_seed_is_repeatable_and_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (seeded_model(Mask2FormerConfig.tiny(), seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_seeded_model_has_no_weight_at_its_initial_value(model: Mask2Former) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.unique().numel() > 1, name


def normalised_photo(name: str, short_side: int = 256) -> Tensor:
    image = Image.open(PHOTOS / name).convert("RGB")
    scale = short_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


def panoptic_segments(output: SegmentationOutput, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(class_id, area) by the rule of the original, in the plainest form."""
    scores, classes = output.class_queries_logits[0].softmax(-1).max(-1)
    kept = ((classes < output.class_queries_logits.shape[-1] - 1) & (scores > 0.8)).nonzero()[:, 0]
    if len(kept) == 0:
        return []
    logits = output.masks_queries_logits[:, kept]
    masks = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].sigmoid()
    winner = (masks * scores[kept, None, None]).argmax(0)
    segments = []
    for index, query in enumerate(kept):
        won, on = winner == index, masks[index] >= 0.5
        area = (won & on).sum().item()
        if area and won.sum() / on.sum() >= 0.8:
            segments.append((classes[query].item(), area))
    return segments


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs at {PHOTOS}")
def test_a_seeded_model_segments_photographs(model: Mask2Former) -> None:
    """Several segments, of several classes, that are neither specks nor everything, and not the same for all photos."""
    found = []
    for name in PHOTO_NAMES:
        photo = normalised_photo(name)
        size = (photo.shape[2], photo.shape[3])
        segments = panoptic_segments(predict(model, photo), size)
        assert len({class_id for class_id, _ in segments}) >= 2
        assert 0.02 < max(area for _, area in segments) / (size[0] * size[1]) < 0.9
        found.append(segments)
    assert sum(map(len, found)) / len(found) >= 3
    assert found[0] != found[1] != found[2]
