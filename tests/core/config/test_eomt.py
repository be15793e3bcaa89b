"""What a configuration of an EoMT refuses: everything it could not build, by one line that names the field."""

import pytest

from m2f_core.config.eomt import EomtConfig
from m2f_core.config.fields import ConfigError

WRONG = {
    "hidden_size": (0, 65_537, 1000, 2.5),  # 1000 is not divisible by 16 heads
    "num_hidden_layers": (0, 100, True),
    "num_attention_heads": (0, 2000, 7),
    "mlp_ratio": (0, 65, 4.5),
    "use_swiglu_ffn": ("yes", 1),
    "hidden_act": ("prelu", 7),
    "layer_norm_eps": (0, 2, "small"),
    "image_size": (0, 5000, 650, [640, 480]),
    "patch_size": (0, 65, [16, 16]),
    "num_channels": (1, 4, True),
    "num_register_tokens": (-1, 257, False, 1.5),
    "num_blocks": (0, 25),
    "num_upscale_blocks": (0, 5),
    "num_queries": (0, 10_001),
    "train_num_points": (0,),
    "no_object_weight": (-1, float("nan")),
    "oversample_ratio": (0.5,),
    "importance_sample_ratio": (1.5,),
    "drop_path_rate": (-0.1, 2),
    "id2label": ({0: "a", 2: "b"},),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_in_one_line(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        EomtConfig(**{name: value})
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 16_384, "mlp_ratio": 8},  # each is in its bounds
        {"image_size": 4096, "patch_size": 1, "num_upscale_blocks": 1},
    ],
    ids=str,
)
def test_numbers_that_are_too_large_together_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError) as error:
        EomtConfig(**fields)
    assert all(name in str(error.value) for name in fields)


def test_sizes_follow_from_the_fields() -> None:
    plain, swiglu = EomtConfig(), EomtConfig(hidden_size=1536, num_attention_heads=24, use_swiglu_ffn=True)
    assert (plain.grid_side, plain.mask_side, plain.mlp_width) == (40, 160, 4096)
    assert swiglu.mlp_width == 4096  # of a ViT-g
