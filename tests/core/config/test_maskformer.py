import dataclasses
import json

import pytest

from m2f_core.config.fields import ConfigError
from m2f_core.config.maskformer import DetrDecoderConfig, MaskFormerConfig

VARIANTS = ["swin_tiny", "swin_small", "swin_base", "swin_large", "resnet50", "resnet101", "tiny"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip(variant: str) -> None:
    config = getattr(MaskFormerConfig, variant)(id2label={0: "cat", 1: "sky"})
    assert config.num_labels == 2
    assert config.num_queries == config.decoder_config.num_queries
    assert MaskFormerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_field_is_read_and_written() -> None:
    """Under transformers' names; whole numbers become what transformers takes for numbers."""
    given = {
        "fpn_feature_size": 96,
        "mask_feature_size": 40,
        "no_object_weight": 1,
        "cross_entropy_weight": 3,
        "mask_weight": 0.5,
        "dice_weight": 0,
        "init_std": 0.01,
        "init_xavier_std": 2,
        "use_auxiliary_loss": True,
        "output_auxiliary_logits": True,
    }
    decoder = {
        "d_model": 24,
        "num_queries": 3,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 7,
        "activation_function": "gelu",
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "activation_dropout": 0.4,
    }
    assert decoder.keys() == {field.name for field in dataclasses.fields(DetrDecoderConfig)}
    config = MaskFormerConfig.from_dict({"model_type": "maskformer", **given, "decoder_config": decoder})
    written = json.loads(json.dumps(config.to_dict()))
    assert {name: written[name] for name in given} == given
    assert {name: written["decoder_config"][name] for name in decoder} == decoder
    assert all(type(written[name]) is float for name in ("cross_entropy_weight", "dice_weight", "no_object_weight"))
    assert MaskFormerConfig.from_dict(written) == config


def test_legacy_spellings() -> None:
    config = MaskFormerConfig.from_dict(
        {"model_type": "maskformer", "hidden_size": 128, "decoder_config": {"hidden_size": 64}}
    )
    assert (config.mask_feature_size, config.decoder_config.d_model) == (128, 64)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "mask2former"}, "model_type"),
        ({"backbone_config": {"model_type": "convnext"}}, "backbone_config.model_type"),
        ({"decoder_config": "detr"}, "decoder_config"),
        ({"decoder_config": {"model_type": "conditional_detr"}}, "decoder_config.model_type"),
        ({"decoder_config": {"auxiliary_loss": True}}, "decoder_config.auxiliary_loss"),
        ({"decoder_config": {"d_model": 10**9}}, "d_model"),
        ({"decoder_config": {"d_model": 100}}, "d_model"),
        ({"decoder_config": {"d_model": 6, "decoder_attention_heads": 2}}, "2D sine code"),
        ({"decoder_config": {"num_queries": 0}}, "num_queries"),
        ({"decoder_config": {"decoder_layers": 100}}, "decoder_layers"),
        ({"decoder_config": {"decoder_attention_heads": True}}, "decoder_attention_heads"),
        ({"decoder_config": {"decoder_ffn_dim": 1e9}}, "decoder_ffn_dim"),
        ({"decoder_config": {"activation_function": "prelu"}}, "activation_function"),
        ({"decoder_config": {"dropout": 2}}, "dropout"),
        ({"decoder_config": {"attention_dropout": "0"}}, "attention_dropout"),
        ({"decoder_config": {"activation_dropout": -0.1}}, "activation_dropout"),
        ({"fpn_feature_size": 80}, "fpn_feature_size"),
        ({"fpn_feature_size": 32.5}, "fpn_feature_size"),
        ({"mask_feature_size": 10**9}, "mask_feature_size"),
        ({"use_auxiliary_loss": "yes"}, "use_auxiliary_loss"),
        ({"output_auxiliary_logits": 1}, "output_auxiliary_logits"),
        ({"no_object_weight": -1}, "no_object_weight"),
        ({"mask_weight": float("nan")}, "mask_weight"),
        ({"mask_weight": 0, "dice_weight": 0, "cross_entropy_weight": 0}, "must not all be 0"),
        ({"num_labels": 10**9}, "num_labels"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(change: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        MaskFormerConfig.from_dict({"model_type": "maskformer", **change})
    assert "\n" not in str(error.value)
