"""Layers in 8 bits: rounding, exact products of what was rounded, and the whole model's distance from float32."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from m2f_core.layers import int8
from m2f_core.layers.cpu_instructions import int8_refusal
from m2f_core.layers.int8 import Int8Conv, Int8Linear, round_to_int8
from m2f_core.layers.linear import ActivatedLinear
from m2f_core.layers.rounding_kernel import round_to_bytes

torch.set_num_threads(1)
needs_vnni = pytest.mark.skipif(int8_refusal() is not None, reason=str(int8_refusal()))
NUMBERS = st.floats(-1e6, 1e6, width=32)


def numbers_of(x: torch.Tensor) -> torch.Tensor:
    rounded = round_to_bytes(x)
    return (rounded.values.double() - rounded.zero_point) * rounded.scale


@given(hnp.arrays(np.float32, st.integers(1, 300), elements=NUMBERS))
def test_a_rounded_number_is_at_most_half_a_step_away_and_zero_stays_zero(numbers: np.ndarray) -> None:
    x = torch.from_numpy(np.append(numbers, np.float32(0)))
    rounded = round_to_bytes(x)
    # The zero point is rounded, too: at the edges half a step more.
    assert (numbers_of(x) - x.double()).abs().max() <= rounded.scale * (1.001 if x.min() < 0 else 0.501)
    assert numbers_of(x)[-1] == 0
    assert rounded.values.dtype == torch.uint8


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_the_memory_format_change_nothing(threads: int) -> None:
    x = torch.randn(2, 64, 40, 31, generator=torch.Generator().manual_seed(0))
    expected = round_to_bytes(x)
    torch.set_num_threads(threads)
    try:
        found = round_to_bytes(x.contiguous(memory_format=torch.channels_last))
    finally:
        torch.set_num_threads(1)
    assert found.values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.values, expected.values)
    assert (found.scale, found.zero_point) == (expected.scale, expected.zero_point)


@pytest.mark.parametrize("broken", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 70, 299])
def test_a_number_that_is_not_finite_is_refused(broken: float, place: int) -> None:
    x = torch.randn(300)
    x[place] = broken
    with pytest.raises(ValueError, match="not finite"):
        round_to_bytes(x)


def rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    scales = (weight.flatten(1).abs().amax(1) / 127).view(-1, *[1] * (weight.dim() - 1))
    return (weight / scales).round() * scales


@needs_vnni
@pytest.mark.parametrize("activation", [None, F.relu, F.gelu, torch.tanh])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_multiplies_what_was_rounded(activation, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 50, bias=bias) if activation is None else ActivatedLinear(70, 50, activation)
    if not bias:
        linear.bias = None
    x = torch.randn(3, 7, 70) + 0.5
    with torch.inference_mode():
        found = Int8Linear(linear)(x)
        exact = F.linear(numbers_of(x).float(), rounded_weight(linear.weight), linear.bias)
    torch.testing.assert_close(found, exact if activation is None else activation(exact), atol=1e-4, rtol=1e-4)


@needs_vnni
def test_a_convolution_multiplies_what_was_rounded_and_its_padding_is_zero() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 3, padding=1)
    x = torch.randn(2, 24, 9, 13) + 2  # zero is far from the middle of the range
    with torch.inference_mode():
        found = Int8Conv(conv)(x)
        exact = F.conv2d(numbers_of(x).float(), rounded_weight(conv.weight), conv.bias, padding=1)
    torch.testing.assert_close(found, exact, atol=2e-4, rtol=1e-4)


@needs_vnni
def test_only_wide_layers_are_rounded() -> None:
    wide, narrow = int8.LEAST_WIDTH, int8.LEAST_WIDTH - 1
    part = nn.Sequential(
        nn.Linear(wide, wide),
        nn.Linear(wide, narrow),
        nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.Conv2d(wide, wide, 1), nn.Conv2d(wide, wide, 3, stride=2)
        ),
    )
    round_to_int8(part)
    assert [type(child) for child in (*part[:2], *part[2])] == [Int8Linear, nn.Linear, Int8Conv, nn.Conv2d, nn.Conv2d]
