"""What a configuration of a OneFormer refuses: everything it could not build, by one line that names the field."""

import json

import pytest

from m2f_core.config.backbones import SwinConfig
from m2f_core.config.fields import ConfigError
from m2f_core.config.oneformer import TASK_TOKENS, OneFormerConfig

WRONG = {
    "conv_dim": (0, 65_537, 512, 2.5),
    "mask_dim": (0, 128),
    "hidden_dim": (0, 65_537, 260, 272, True),  # 260 / 8 heads, 272 / 32 groups
    "encoder_layers": (0, 100),
    "encoder_feedforward_dim": (0, 65_537),
    "decoder_layers": (0, 101, "9"),
    "num_attention_heads": (0, 2000, 7),
    "dim_feedforward": (-1, 65_537),
    "query_dec_layers": (0, 100),
    "pre_norm": (1, "no"),
    "enforce_input_proj": (True, 0),
    "use_task_norm": (1, None),
    "layer_norm_eps": (0, 2, "small"),
    "norm": ("BN", 7),
    "common_stride": (0, 8, 65),
    "strides": ((4, 8, 16), (4, 8, 16, 64), [4, 8, 16, 32], (4, 8, 16, 1024)),
    "num_queries": (0, 1, 10_001),
    "task_seq_len": (0, 6, 65_537),
    "id2label": ({0: "a", 2: "b"}, {}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_in_one_line(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        OneFormerConfig(**{name: value})
    assert name in str(error.value) and "\n" not in str(error.value)


def test_dinat_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match='"dinat": a OneFormer with a DiNAT backbone is not supported'):
        OneFormerConfig.from_dict({"model_type": "oneformer", "backbone_config": {"model_type": "dinat"}})


def test_json_round_trip() -> None:
    """Fields of training are not kept; what is written says that there is no text mapper."""
    config = OneFormerConfig.tiny(id2label={0: "cat", 1: "sky"}, num_queries=7)
    written = json.loads(json.dumps(config.to_dict()))
    assert OneFormerConfig.from_dict({**written, "is_training": True, "text_encoder_width": 7}) == config
    assert written["is_training"] is False


def test_strides_are_the_backbones() -> None:
    swin = SwinConfig(patch_size=2)
    config = OneFormerConfig(backbone_config=swin, strides=(2, 4, 8, 16), common_stride=2)
    assert OneFormerConfig.from_dict(config.to_dict()) == config


def test_a_sentence_is_start_text_end() -> None:
    assert set(TASK_TOKENS) == {"panoptic", "instance", "semantic"}
    for row in TASK_TOKENS.values():
        assert (row[:4], row[-1]) == ((49406, 518, 10549, 533), 49407)
    assert len(set(TASK_TOKENS.values())) == 3
