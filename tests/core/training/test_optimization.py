"""Parameter groups and learning rate against the original's rules, written down here a second way."""

from itertools import pairwise

import pytest
from torch import nn

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.training.initial_weights import initial_model
from m2f_core.training.optimization import LearningRate, parameter_groups


@pytest.fixture(scope="module")
def model():
    return initial_model(Mask2FormerConfig.tiny(), 0)


def test_every_parameter_is_in_one_group(model):
    grouped = [parameter for group in parameter_groups(model, 1e-4, 0.05, 0.1) for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}


def test_groups_follow_the_originals_rules(model):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    norms = {
        f"{name}.{p}" for name, m in model.named_modules() if "Norm" in type(m).__name__ for p in ("weight", "bias")
    }
    for group in parameter_groups(model, 1e-4, 0.05, 0.1):
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            expected_rate = 1e-5 if name.startswith("backbone.") else 1e-4
            undecayed = name in norms or name.split(".")[-1] in (
                "query_features", "query_positions", "relative_position_bias_table",
            ) or name == "transformer_decoder.level_embed"  # fmt: skip
            assert group["lr"] == pytest.approx(expected_rate), name
            assert group["weight_decay"] == (0.0 if undecayed else 0.05), name


def test_only_matrices_kernels_biases_and_the_pixel_decoders_levels_decay(model):
    modules = dict(model.named_modules())
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying = [g for g in parameter_groups(model, 1e-4, 0.05, 0.1) if g["weight_decay"]]
    for name in (name_of[id(p)] for group in decaying for p in group["params"]):
        owner = modules[name.rpartition(".")[0]]
        assert isinstance(owner, (nn.Linear, nn.Conv2d)) or name == "pixel_decoder.level_embed", name


def test_step_schedule_is_cocos():
    course = LearningRate("step", 368_750, 10)
    assert [course.factor(i) for i in (10, 327_777)] == [1.0, 1.0]
    assert course.factor(327_778) == pytest.approx(0.1)
    assert course.factor(355_091) == pytest.approx(0.1)
    assert course.factor(355_092) == pytest.approx(0.01)


def test_poly_schedule_falls_to_nothing_and_warm_up_rises_to_it():
    course = LearningRate("poly", 1000, 10)
    factors = [course.factor(i) for i in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[500] == pytest.approx(0.5**0.9)
    assert all(before > after for before, after in pairwise(factors[9:]))
    assert 0 < factors[-1] < 0.01
    assert LearningRate("poly", 1000, 0).factor(0) == 1.0
