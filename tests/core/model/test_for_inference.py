"""A model made ready for inference answers as before; its layers as torch's own."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.layers import int8
from m2f_core.layers.cpu_instructions import bf16_refusal, cpu_instructions, int8_refusal
from m2f_core.layers.int8 import Int8Conv, Int8Linear
from m2f_core.layers.linear import Float32Linear, PackedLinear, convert_weights
from m2f_core.model.for_inference import prepare_for_inference
from tests.support.seeded_model import seeded_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_packed_layer_is_the_layer(data):
    rows, inputs, outputs = (data.draw(st.integers(1, most)) for most in (70, 70, 70))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    linear = nn.Linear(inputs, outputs, bias=data.draw(st.booleans()))
    x = torch.randn(2, rows, inputs)
    if data.draw(st.booleans()):
        x = torch.randn(2, inputs, rows).transpose(1, 2)
    torch.testing.assert_close(PackedLinear(linear, torch.float32)(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("bf16_on_cpu")
def test_a_layer_packed_in_bf16_is_nearly_the_layer():
    torch.manual_seed(0)
    linear, x = nn.Linear(70, 33), torch.randn(2, 5, 70)
    halves = PackedLinear(linear, torch.bfloat16)(x)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), linear(x), rtol=0.05, atol=0.05)


def test_a_float32_layer_is_one_under_autocast_and_with_other_weights():
    torch.manual_seed(0)
    linear, x = Float32Linear(32, 16), torch.randn(5, 32)
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x), expected)
        assert linear(x.bfloat16()).dtype == torch.float32
    half = Float32Linear(32, 16).bfloat16()
    assert half(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [(70, 90), (64, 64)])
def test_a_prepared_model_answers_as_before(size):
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = seeded_model(Mask2FormerConfig.tiny(), seed=0).eval()(pixels)
    model = prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), CPU, "fp32")
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    output = model(pixels)
    torch.testing.assert_close(output.class_queries_logits, expected.class_queries_logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(output.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=2e-4)


def test_weights_that_are_converted_once_give_what_autocast_gives():
    """As on a GPU, where autocast would convert them in every pass; the layers in float32 stay."""
    pixels = torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(1))
    outputs = []
    for convert in (lambda model: model, lambda model: convert_weights(model, torch.bfloat16)):
        model = convert(seeded_model(Mask2FormerConfig.tiny(), seed=0))
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(model(pixels))
    assert torch.equal(outputs[0].masks_queries_logits, outputs[1].masks_queries_logits)
    assert torch.equal(outputs[0].class_queries_logits, outputs[1].class_queries_logits)
    kept = [module for module in model.modules() if isinstance(module, Float32Linear)]
    assert kept and all(module.weight.dtype == torch.float32 for module in kept)
    assert model.class_predictor.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("vectors", "amx", "most", "found"),
    [
        ("AVX512", True, "", "AVX512 and AMX"),
        ("AVX512", True, "AVX512_CORE_AMX", "AVX512 and AMX"),
        ("AVX512", True, "AVX512_CORE_BF16", "AVX512"),
        ("AVX512", False, "", "AVX512"),
        ("AVX2", True, "", "AVX2"),
    ],
)
def test_bf16_is_refused_on_a_cpu_without_amx(monkeypatch, vectors, amx, most, found):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert cpu_instructions() == found
    if found.endswith("AMX"):
        assert bf16_refusal() is None
    else:
        with pytest.raises(ValueError, match=f"needs AMX, this CPU has {found}, "):
            prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), CPU, "bf16")


@pytest.mark.parametrize(
    ("vnni", "most", "may"),
    [
        ("avx512_vnni", "", True),
        ("avx_vnni", "AVX2_VNNI", True),
        ("avx512_vnni", "AVX512_CORE_VNNI", True),
        ("avx512_vnni", "AVX512_CORE", False),
        ("avx512_vnni", "AVX2", False),
        ("none", "", False),
    ],
)
def test_int8_is_refused_on_a_cpu_without_vnni(monkeypatch, vnni, most, may):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {vnni: True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert (int8_refusal() is None) == may
    if not may:
        with pytest.raises(ValueError, match="int8 on a CPU needs VNNI"):
            prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), CPU, "int8")


def test_int8_is_not_for_gpus():
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), torch.device("cuda"), "int8")


@pytest.mark.skipif(int8_refusal() is not None, reason=str(int8_refusal()))
def test_in_int8_the_model_is_near_float32(monkeypatch):
    """Its layers are narrower than those that are rounded in a published model."""
    monkeypatch.setattr(int8, "LEAST_WIDTH", 32)
    model = prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), CPU, "int8")
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert kinds["Int8Linear"] > 10 and kinds["Int8Conv"] == 1
    assert not any(isinstance(m, Int8Linear | Int8Conv) for m in model.transformer_decoder.modules())
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    output, expected = model(pixels), seeded_model(Mask2FormerConfig.tiny(), seed=0).eval()(pixels)
    flipped = (output.masks_queries_logits >= 0) != (expected.masks_queries_logits >= 0)
    assert 0 < flipped.float().mean() < 0.05


@pytest.mark.usefixtures("bf16_on_cpu")
def test_in_bf16_what_must_be_float32_is():
    model = prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), CPU, "bf16")
    own = {m.dtype for name, m in model.named_modules() if name.endswith(("sampling_offsets", "attention_weights"))}
    others = {m.dtype for m in model.modules() if isinstance(m, PackedLinear)} - own
    assert own == {torch.float32} and others == {torch.bfloat16}
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pixels)
    expected = seeded_model(Mask2FormerConfig.tiny(), seed=0).eval()(pixels)
    assert output.masks_queries_logits.dtype == torch.float32
    flipped = (output.masks_queries_logits >= 0) != (expected.masks_queries_logits >= 0)
    assert flipped.float().mean() < 0.05
