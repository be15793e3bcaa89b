"""Parameters without a layer start as torch.randn would make them."""

import torch

from m2f_core.layers.initial_values import standard_normal


def test_values_are_those_of_randn():
    torch.manual_seed(5)
    expected = torch.randn(7, 256)
    torch.manual_seed(5)
    assert torch.equal(standard_normal(7, 256), expected)


def test_on_the_meta_device_there_are_none():
    with torch.device("meta"):
        values = standard_normal(7, 256)
    assert values.is_meta and values.shape == (7, 256)
