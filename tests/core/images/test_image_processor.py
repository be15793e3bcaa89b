"""`ImageProcessor` against a plain oracle of detectron2's preprocessing, and the properties of its geometry.

Legend: B batch, h w resized pixels, H W padded pixels.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.images import pixel_table, resize
from m2f_core.images.image_processor import MODES, ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.images.pixel_table import look_up, look_up_by_torch
from tests.support.places import ROOT

torch.set_num_threads(1)

REFERENCE = ImageProcessor("reference")
SMALL = ImageProcessor("reference", ImageSize(edges=(64, 100)))

lengths = st.one_of(st.integers(1, 64), st.integers(1, 20_000))
sizes = st.one_of(
    st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(lambda pair: ImageSize(edges=(min(pair), max(pair)))),
    st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(lambda pair: ImageSize(fixed_hw=pair)),
)
processors = st.builds(ImageProcessor, st.sampled_from(MODES), sizes)


def noise_image(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 10_007 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def detectron2_oracle(image: Image.Image, shortest: int, longest: int) -> np.ndarray:
    """float32 [3, H, W]: ResizeShortestEdge, normalise on 0..255, pad with 0 to a multiple of 32, step by step."""
    scale = shortest / min(image.height, image.width)
    height, width = image.height * scale, image.width * scale
    if max(height, width) > longest:
        height, width = height * longest / max(height, width), width * longest / max(height, width)
    height, width = int(height + 0.5), int(width + 0.5)
    pixels_hw3 = np.asarray(image.resize((width, height), Image.BILINEAR)).astype(np.float32)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    padded_HW3 = np.zeros(((height + 31) // 32 * 32, (width + 31) // 32 * 32, 3), np.float32)
    padded_HW3[:height, :width] = (pixels_hw3 - mean) / std
    return padded_HW3.transpose(2, 0, 1)


def process(processor: ImageProcessor, image: Image.Image) -> torch.Tensor:
    geometry = processor.geometry(image.height, image.width)
    return processor.to_batch([processor.resize(image)], geometry.padded_hw)[0]


# Pixels


@pytest.mark.parametrize("hw", [(480, 640), (640, 480), (33, 500), (500, 33), (64, 64), (7, 9), (1, 1), (427, 640)])
def test_reference_equals_detectron2_bitwise(hw: tuple[int, int]) -> None:
    image = noise_image(*hw)
    assert np.array_equal(process(SMALL, image).numpy(), detectron2_oracle(image, 64, 100))


def test_padding_is_zero_after_normalising() -> None:
    image = Image.new("RGB", (40, 20))  # black, which is not 0 after normalising
    geometry = SMALL.geometry(20, 40)
    assert (geometry.resized_hw, geometry.padded_hw) == ((50, 100), (64, 128))
    pixels_3HW = process(SMALL, image)
    assert (pixels_3HW[:, :50, :100] < -1.5).all()
    assert (pixels_3HW[:, 50:] == 0).all() and (pixels_3HW[:, :, 100:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_image_does_not_depend_on_its_batch(mode: str) -> None:
    """Images of one padded size, most with different resized sizes."""
    processor = ImageProcessor(mode, ImageSize(edges=(64, 100)))
    images = [processor.resize(noise_image(height, 90)) for height in (60, 61, 62, 64)]
    padded_hw = processor.geometry(60, 90).padded_hw
    batch_B3HW = processor.to_batch(images, padded_hw)
    assert batch_B3HW.dtype == torch.float32 and batch_B3HW.shape == (4, 3, *padded_hw)
    for alone, image_hw3 in zip(batch_B3HW, images, strict=True):
        assert torch.equal(processor.to_batch([image_hw3], padded_hw)[0], alone)
    assert torch.equal(processor.to_batch(images[::-1], padded_hw), batch_B3HW.flip(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_the_device_does_not_change_a_bit(mode: str) -> None:
    images = [np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)]
    processor = ImageProcessor(mode)
    assert torch.equal(processor.to_batch(images, (32, 32), "cuda").cpu(), processor.to_batch(images, (32, 32)))


def test_ways_to_look_pixels_up_give_the_same() -> None:
    image_hw3 = torch.from_numpy(np.array(noise_image(30, 50)))
    table_CV = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    firsts_C = torch.arange(3, dtype=torch.int32) * 256
    values = look_up_by_torch(image_hw3[None], torch.from_numpy(table_CV), firsts_C)
    assert torch.equal(look_up([image_hw3], table_CV, (30, 50), np.zeros(3, np.float32)), values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [[(50, 70)], [(50, 70)] * 3, [(50, 70), (51, 70), (50, 70), (64, 90)]])
def test_a_device_that_resizes_gives_the_same_network_input(mode: str, sizes: list[tuple[int, int]]) -> None:
    """Images of one size at once, others one by one; one that has its size already is not resized."""
    processor = ImageProcessor(mode, ImageSize(edges=(64, 100)))
    images = [noise_image(*size) for size in sizes]
    geometries = [processor.geometry(image.height, image.width) for image in images]
    [padded_hw] = {geometry.padded_hw for geometry in geometries}
    stored = [torch.from_numpy(np.array(image)) for image in images]
    stored[-1] = torch.from_numpy(processor.resize(images[-1], geometries[-1].resized_hw))
    batch = processor.batch_by_torch(stored, [geometry.resized_hw for geometry in geometries], padded_hw)
    expected = [
        processor.to_batch([processor.resize(image, geometry.resized_hw)], padded_hw)[0]
        for image, geometry in zip(images, geometries, strict=True)
    ]
    assert torch.equal(batch, torch.stack(expected))


def test_the_two_modes_differ_in_the_last_bits_only() -> None:
    every_value = [np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)]
    reference, hf = (ImageProcessor(mode).to_batch(every_value, (16, 16)) for mode in MODES)
    assert 0 < (reference - hf).abs().max() < 5e-7


def test_warm_up_leaves_nothing_to_compile() -> None:
    SMALL.warm_up()
    kernels = (resize._along_rows, resize._along_columns, pixel_table._look_up)
    compiled = [list(kernel.signatures) for kernel in kernels]
    assert all(compiled)
    process(SMALL, noise_image(70, 50))
    process(SMALL, noise_image(30, 50))
    assert [list(kernel.signatures) for kernel in kernels] == compiled


def test_only_rgb_images_are_resized() -> None:
    with pytest.raises(ValueError, match="mode L, not RGB"):
        SMALL.resize(Image.new("L", (10, 10)))


def test_the_filter_of_the_file_is_used() -> None:
    image = noise_image(100, 150)
    nearest = ImageProcessor.from_preprocessor_config({"resample": 0}, "reference", ImageSize(fixed_hw=(32, 64)))
    assert np.array_equal(nearest.resize(image), np.asarray(image.resize((64, 32), Image.Resampling.NEAREST)))


# Geometry


@pytest.mark.parametrize(
    ("hw", "resized_hw", "padded_hw"),
    [
        ((480, 640), (800, 1067), (800, 1088)),  # transformers truncates to 1066
        ((427, 640), (800, 1199), (800, 1216)),
        ((640, 427), (1199, 800), (1216, 800)),
        ((1080, 1920), (750, 1333), (768, 1344)),
        ((1, 20_000), (1, 1333), (32, 1344)),  # detectron2 gives a height of 0
        ((20_000, 1), (1333, 1), (1344, 32)),
        ((1, 1), (800, 800), (800, 800)),
    ],
)
def test_reference_sizes(hw: tuple[int, int], resized_hw: tuple[int, int], padded_hw: tuple[int, int]) -> None:
    geometry = REFERENCE.geometry(*hw)
    assert (geometry.original_hw, geometry.resized_hw, geometry.padded_hw) == (hw, resized_hw, padded_hw)


def test_fixed_sizes() -> None:
    size = ImageSize(fixed_hw=(384, 500))
    reference = ImageProcessor("reference", size).geometry(10, 1000)
    assert (reference.resized_hw, reference.padded_hw) == ((384, 500), (384, 512))
    hf = ImageProcessor("hf", size).geometry(10, 1000)
    assert (hf.resized_hw, hf.padded_hw) == ((384, 512), (384, 512))


@given(processors, lengths, lengths)
def test_padded_covers_resized_by_less_than_the_divisor(processor: ImageProcessor, height: int, width: int) -> None:
    geometry = processor.geometry(height, width)
    assert geometry.original_hw == (height, width)
    for resized, padded in zip(geometry.resized_hw, geometry.padded_hw, strict=True):
        assert 1 <= resized <= padded < resized + 32 and padded % 32 == 0
    if processor.mode == "hf":
        assert geometry.resized_hw == geometry.padded_hw


@given(st.builds(ImageProcessor, st.just("reference"), sizes), lengths, lengths)
def test_reference_keeps_the_bounds_and_the_aspect(processor: ImageProcessor, height: int, width: int) -> None:
    resized_hw = processor.geometry(height, width).resized_hw
    if processor.size.edges is None:
        assert resized_hw == processor.size.fixed_hw
        return
    shortest, longest = processor.size.edges
    assert max(resized_hw) <= longest
    assert min(resized_hw) <= shortest
    assert min(resized_hw) == shortest or max(resized_hw) == longest
    if height != width:
        assert (resized_hw[0] <= resized_hw[1]) == (height < width) or resized_hw[0] == resized_hw[1]
    # Each length is less than 1 pixel from its exact value: half a pixel of rounding, more where it had to be 1.
    assert abs(resized_hw[1] - resized_hw[0] * width / height) < 1 + width / height


@given(processors, lengths, lengths)
def test_transposing_the_image_transposes_its_sizes(processor: ImageProcessor, height: int, width: int) -> None:
    if processor.size.edges is not None:
        landscape, portrait = processor.geometry(height, width), processor.geometry(width, height)
        assert landscape.resized_hw == portrait.resized_hw[::-1] and landscape.padded_hw == portrait.padded_hw[::-1]


@given(st.builds(ImageProcessor, st.just("reference"), sizes), st.integers(1, 4096), st.integers(1, 4096))
def test_an_image_of_the_right_size_stays_as_it_is(processor: ImageProcessor, height: int, width: int) -> None:
    """Where rounding left one edge exactly on its bound, which a second resize keeps."""
    resized_hw = processor.geometry(height, width).resized_hw
    if processor.size.edges is None or min(resized_hw) == processor.size.edges[0]:
        assert processor.geometry(*resized_hw).resized_hw == resized_hw


# The file


def test_no_file_means_the_papers_setting() -> None:
    processor = ImageProcessor.from_preprocessor_config(None, "reference", None)
    assert processor == ImageProcessor("reference") and processor.size == ImageSize(edges=(800, 1333))
    assert ImageProcessor.from_preprocessor_config({}, "reference", None) == processor
    assert processor.warnings() == []


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"size": {"height": 384, "width": 512}}, ImageSize(fixed_hw=(384, 512))),
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, ImageSize(edges=(512, 2048))),
        ({"size": {"shortest_edge": 512}}, ImageSize(edges=(512, 1333))),
        ({"size": {"shortest_edge": 512, "longest_edge": None}, "max_size": 900}, ImageSize(edges=(512, 900))),
        ({"size": 512, "max_size": 2048}, ImageSize(edges=(512, 2048))),
        ({"size": 512}, ImageSize(edges=(512, 1333))),
        ({"max_size": 2048}, ImageSize(edges=(800, 2048))),
        ({"size": [384, 512]}, ImageSize(fixed_hw=(384, 512))),
    ],
)
def test_sizes_of_the_file(config: dict[str, object], size: ImageSize) -> None:
    processor = ImageProcessor.from_preprocessor_config(config, "hf", None)
    assert processor.size == size and processor.size_source == "file"


def test_a_fixed_size_in_the_file_is_worth_a_warning() -> None:
    config = {"size": {"height": 384, "width": 384}, "ignore_index": 255, "reduce_labels": True}
    (warning,) = ImageProcessor.from_preprocessor_config(config, "reference", None).warnings()
    assert "384x384" in warning and "800:1333" in warning
    asked_for = ImageProcessor.from_preprocessor_config(config, "reference", ImageSize.parse("384x384"))
    assert asked_for.warnings() == [] and asked_for.size_source == "argument"


def test_the_argument_replaces_the_files_size() -> None:
    config = {"size": "nonsense"}
    size = ImageSize.parse("640:2560")
    assert ImageProcessor.from_preprocessor_config(config, "hf", size).size == size


def test_switched_off_steps_are_honoured() -> None:
    config = {"do_normalize": False, "image_mean": [9, 9, 9], "do_rescale": True, "rescale_factor": 0.5}
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for mode in MODES:
        processor = ImageProcessor.from_preprocessor_config(config, mode, None)
        assert torch.equal(processor.to_batch([every_value], (16, 16))[0, 0], torch.arange(256.0).view(16, 16) / 2)
        raw = ImageProcessor.from_preprocessor_config({"do_normalize": False, "do_rescale": False}, mode, None)
        assert torch.equal(raw.to_batch([every_value], (16, 16))[0, 0], torch.arange(256.0).view(16, 16))


@pytest.mark.parametrize("off", [{"do_normalize": False}, {"do_rescale": False}, {"image_std": 1, "image_mean": 0}])
def test_pixels_that_are_not_normalised_are_worth_a_warning(off: dict[str, object]) -> None:
    """Folders of trainings whose scripts normalise by themselves say so; published models have other pixels."""
    (warning,) = ImageProcessor.from_preprocessor_config(off, "reference", None).warnings()
    assert "do_rescale or do_normalize" in warning


@pytest.mark.parametrize(("divisor", "padded"), [(0, 32), (8, 32), (16, 32), (32, 32), (33, 64), (48, 64), (64, 64)])
def test_the_reference_pads_to_multiples_of_32(divisor: int, padded: int) -> None:
    """The processor keeps the number of the file, and writes that number into a new file."""
    processor = ImageProcessor.from_preprocessor_config({"size_divisor": divisor, "size": 50}, "reference", None)
    height, width = processor.geometry(70, 100).padded_hw
    assert height % padded == width % padded == 0 and height - 50 < padded
    assert processor.to_preprocessor_config()["size_divisor"] == divisor
    warnings = processor.warnings()
    assert len(warnings) == (divisor != padded)
    assert all(f"size_divisor {divisor};" in warning and f"multiples of {padded} " in warning for warning in warnings)


@pytest.mark.parametrize("divisor", [0, 1, 8, 48])
def test_transformers_stretches_to_the_files_divisor(divisor: int) -> None:
    processor = ImageProcessor.from_preprocessor_config({"size_divisor": divisor, "size": 50}, "hf", None)
    expected = tuple(-(-length // max(divisor, 1)) * max(divisor, 1) for length in (50, 71))
    assert processor.geometry(70, 100).padded_hw == processor.geometry(70, 100).resized_hw == expected
    assert processor.warnings() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_does_not_resize(mode: str) -> None:
    """Only `reference` pads to multiples of the stride."""
    processor = ImageProcessor.from_preprocessor_config({"do_resize": False}, mode, None)
    geometry = processor.geometry(50, 71)
    assert geometry.resized_hw == (50, 71)
    assert geometry.padded_hw == ((64, 96) if mode == "reference" else (50, 71))
    assert "do_resize" in processor.warnings()[0] and str(processor.size) == "of each image"


def test_limits_of_height_and_width() -> None:
    for size in ({"max_height": 60, "max_width": 50}, {"longest_edge": 60}):
        processor = ImageProcessor.from_preprocessor_config({"size": size, "size_divisor": 0}, "hf", None)
        expected = (25, 50) if "max_width" in size else (30, 60)
        assert processor.geometry(100, 200).resized_hw == expected
        assert processor.geometry(10, 5000).resized_hw == (1, 50 if "max_width" in size else 60)


def test_pad_size() -> None:
    """In hf mode every image gets it; reference mode says that none does."""
    config = {"size": {"height": 64, "width": 96}, "pad_size": {"height": 100, "width": 101}}
    geometry = ImageProcessor.from_preprocessor_config(config, "hf", None).geometry(10, 10)
    assert (geometry.resized_hw, geometry.padded_hw) == ((64, 96), (100, 101))
    reference = ImageProcessor.from_preprocessor_config(config, "reference", None)
    assert reference.geometry(10, 10).padded_hw == (64, 96)
    assert any("pad_size 100x101" in warning for warning in reference.warnings())
    for size, needed in (
        ({"height": 64, "width": 128}, "64x128"),
        ({"shortest_edge": 50, "longest_edge": 90}, "96x96"),
    ):
        with pytest.raises(ValueError, match=f"pad_size 90x101 is smaller than a resized image, .* {needed}"):
            ImageProcessor.from_preprocessor_config(
                {"size": size, "pad_size": {"height": 90, "width": 101}}, "hf", None
            )
    keeps = ImageProcessor.from_preprocessor_config({"do_resize": False, "pad_size": 64}, "hf", None)
    assert keeps.geometry(3, 4).padded_hw == (64, 64)
    with pytest.raises(ValueError, match="smaller than an image of"):
        keeps.geometry(3, 65)


@pytest.mark.parametrize(
    ("config", "is_usual"),
    [
        ({}, True),
        ({"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}, True),
        ({"image_mean": 0.5, "image_std": 0.5}, True),
        ({"do_rescale": False}, False),
        ({"do_normalize": False}, False),
        ({"do_normalize": False, "do_rescale": False}, False),
        ({"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}, False),
    ],
    ids=str,
)
def test_pixels_out_of_the_usual_range_are_said(config: dict[str, object], is_usual: bool) -> None:
    processor = ImageProcessor.from_preprocessor_config(
        {"size": [64, 64], **config}, "reference", ImageSize.parse("64x64")
    )
    assert any("does not normalise" in warning for warning in processor.warnings()) is not is_usual


def test_a_size_replaces_that_of_a_file_that_does_not_resize() -> None:
    size = ImageSize.parse("640:2560")
    assert ImageProcessor.from_preprocessor_config({"do_resize": False}, "hf", size) == ImageProcessor(
        "hf", size, size_source="argument"
    )


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("pad_size", {"pad_size": {"height": 800}}),
        ("pad_size", {"pad_size": {"height": 0, "width": 800}}),
        ("pad_size", {"pad_size": "800x800"}),
        ("size", {"size": {"height": 384}}),
        ("size", {"size": {"height": 0, "width": 384}}),
        ("size", {"size": {"max_height": 384}}),
        ("size", {"size": {"longest_edge": 0}}),
        ("size", {"size": {"shortest_edge": 1000, "longest_edge": 800}}),
        ("size", {"size": "384x384"}),
        ("size", {"size": True}),
        ("image_mean", {"image_mean": [0.5, 0.5]}),
        ("image_mean", {"image_mean": ["a", "b", "c"]}),
        ("image_std", {"image_std": [0.5, 0.0, 0.5]}),
        ("image_std", {"image_std": float("nan")}),
        ("rescale_factor", {"rescale_factor": 0}),
        ("resample", {"resample": 17}),
        ("resample", {"resample": "bilinear"}),
        ("size_divisor", {"size_divisor": -32}),
        ("size_divisor", {"size_divisor": 16.0}),
        ("size_divisor", {"size_divisor": False}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field: str, config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^preprocessor_config.json: {field} = ") as caught:
        ImageProcessor.from_preprocessor_config(config, "reference", None)
    assert "\n" not in str(caught.value)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'paper' is neither"):
        ImageProcessor("paper")


def test_a_processor_is_a_value() -> None:
    processor = ImageProcessor.from_preprocessor_config({"size": 512, "image_mean": 0.5}, "hf", None)
    assert pickle.loads(pickle.dumps(processor)) == processor and processor.mean == (0.5, 0.5, 0.5)


# The written size


@given(sizes)
def test_a_size_survives_being_written(size: ImageSize) -> None:
    assert ImageSize.parse(str(size)) == size


@pytest.mark.parametrize("text", ["", "800", "800:", "800:1333:1", "800*1333", "-1:5", "384X384", "8e2:1333", "٨:٩"])
def test_bad_text_names_both_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"800:1333.*384x384") as caught:
        ImageSize.parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["0:10", "0x10", "10x0", "1333:800", "999999x9", "20000:30000"])
def test_impossible_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"image size {text}"):
        ImageSize.parse(text)


def test_the_size_parser_needs_no_torch() -> None:
    program = "import sys, m2f_core.images.image_size; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
