"""All ways to compute deformable attention against plain loops written from the definition."""

import importlib.util
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2f_core.layers.deformable_attention import (
    DeformableAttention,
    TokenPlaces,
    _triton_way,
    attend_by_embedding_bag,
    attend_by_grid_sample,
    check_kernel,
    fused_way,
    locate_and_weigh,
)
from m2f_core.layers.deformable_attention_kernel import attend_by_kernel

WITH_GRADIENT = [attend_by_grid_sample, attend_by_embedding_bag]
KERNELS = [attend_by_kernel, pytest.param("attend_by_triton", id="attend_by_triton")]
TRITONS_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WAYS = [*WITH_GRADIENT, *KERNELS]
CASES = {  # batch, queries, heads, dim, points, sizes of the levels
    "one level, one cell": (1, 3, 1, 4, 1, [(1, 1)]),
    "odd sizes": (2, 5, 2, 3, 4, [(3, 5), (7, 1), (2, 9)]),
    "many heads": (1, 7, 4, 8, 2, [(4, 4), (8, 6)]),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def attend_by_loops(value: Tensor, level_hw: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Float64 and one number at a time; outside of a map there are zeros."""
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, dim, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (height, width) in enumerate(level_hw):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0].item() * width - 0.5
                        y = locations[b, q, m, level, p, 1].item() * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    cell = value[b, start + row * width + column, m].double()
                                    out[b, q, m] += weights[b, q, m, level, p].item() * share * cell
                    start += height * width
    return out.flatten(2).float()


class Inputs(NamedTuple):
    """What the kernel takes; `plain` is what the other ways take."""

    value: Tensor
    level_hw: list[tuple[int, int]]
    centre: Tensor
    offsets: Tensor
    logits: Tensor

    @property
    def plain(self) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
        cell_size = torch.tensor([(1 / w, 1 / h) for h, w in self.level_hw])
        return self.value, self.level_hw, *locate_and_weigh(cell_size, self.centre, self.offsets, self.logits)


def run(attend, inputs: Inputs) -> Tensor:
    if attend == "attend_by_triton":
        tensors = (x.to(TRITONS_DEVICE) if isinstance(x, Tensor) else x for x in inputs)
        return triton_way()(*tensors).cpu()
    return attend(*(inputs if attend is attend_by_kernel else inputs.plain))


def triton_way():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton has builds for Linux only")
    from m2f_core.layers.deformable_attention_triton import attend_by_triton

    return attend_by_triton


def random_inputs(case: str) -> Inputs:
    """Points reach half a map beyond every edge; some lie exactly on centres, on edges and in corners."""
    batch, queries, heads, dim, points, level_hw = CASES[case]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in level_hw), heads, dim, generator=generator)
    centre = torch.rand(queries, 2, generator=generator)
    centre[:3] = torch.tensor([0.0, 1.0, 0.5])[:, None]
    cells = torch.tensor([(float(w), float(h)) for h, w in level_hw])
    offsets = torch.rand(batch, queries, heads, len(level_hw), points, 2, generator=generator) - 0.5
    offsets = offsets * cells[:, None]
    offsets[:, :3] = 0.0
    logits = torch.randn(batch, queries, heads, len(level_hw), points, generator=generator)
    return Inputs(value, level_hw, centre, offsets, logits)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", WAYS)
def test_equals_loops(attend, case: str) -> None:
    inputs = random_inputs(case)
    torch.testing.assert_close(run(attend, inputs), attend_by_loops(*inputs.plain), rtol=0, atol=5e-6)


@pytest.mark.parametrize("attend", WAYS)
def test_points_far_outside_read_nothing(attend) -> None:
    inputs = random_inputs("odd sizes")
    for far in (-1e9, -30.0, 40.0, 1e9):
        out = run(attend, inputs._replace(offsets=torch.full_like(inputs.offsets, far)))
        assert torch.equal(out.abs().max(), torch.tensor(0.0))


@pytest.mark.parametrize("broken", ["offset", "infinite offset", "logit", "logit of a point outside"])
@pytest.mark.parametrize("attend", [attend_by_embedding_bag, *KERNELS])
def test_not_a_number_stays_where_it_is(attend, broken: str) -> None:
    """A broken activation must show in the result, and must not read outside of the table."""
    inputs = random_inputs("odd sizes")
    if "offset" in broken:
        inputs.offsets[0, 3, 0] = float("inf" if "infinite" in broken else "nan")
    else:
        inputs.logits[0, 3, 0, 1, 1] = float("nan")
    if broken == "logit of a point outside":
        inputs.offsets[0, 3, 0] = 70.0
    is_broken = run(attend, inputs).isnan().unflatten(2, (2, -1))  # heads
    assert is_broken[0, 3, 0].all()
    assert is_broken.sum() == is_broken[0, 3, 0].numel()


def test_both_ways_have_the_same_gradients() -> None:
    gradients = []
    for attend in WITH_GRADIENT:
        value, level_hw, locations, weights = random_inputs("odd sizes").plain
        locations[:, :3] += 0.0137  # off the kinks, where the gradient is not defined
        tensors = [t.double().requires_grad_() for t in (value, locations, weights)]
        attend(tensors[0], level_hw, tensors[1], tensors[2]).square().sum().backward()
        gradients.append([t.grad for t in tensors])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_offsets_and_logits_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(dim=16, num_heads=2, num_levels=1, num_points=3).eval()
    places = TokenPlaces([(4, 5)], torch.randn(1, 20, 16), torch.rand(20, 2), torch.tensor([[1 / 5, 1 / 4]]))
    seen: list[Tensor] = []

    def spy(value: Tensor, level_hw: list[tuple[int, int]], centre: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        seen.extend((offsets, logits))
        return attend_by_kernel(value, level_hw, centre, offsets, logits)

    monkeypatch.setattr("m2f_core.layers.deformable_attention.attend_by_kernel", spy)
    x = torch.randn(1, 20, 16)
    with torch.no_grad():
        attention(x, places)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attention(x, places)
    offsets, logits, offsets_autocast, logits_autocast = seen
    assert out.dtype == torch.bfloat16
    assert offsets_autocast.dtype == logits_autocast.dtype == torch.float32
    assert torch.equal(offsets_autocast, offsets)
    assert torch.equal(logits_autocast, logits)


def test_training_and_inference_agree() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(dim=16, num_heads=2, num_levels=1, num_points=3)
    places = TokenPlaces([(4, 5)], torch.randn(1, 20, 16), torch.rand(20, 2), torch.tensor([[1 / 5, 1 / 4]]))
    x = torch.randn(2, 20, 16)
    torch.testing.assert_close(attention.train()(x, places), attention.eval()(x, places), rtol=0, atol=1e-5)


def test_threads_and_strides_change_nothing() -> None:
    inputs = random_inputs("many heads")
    once = run(attend_by_kernel, inputs)
    strided = inputs._replace(value=inputs.value.transpose(1, 2).contiguous().transpose(1, 2))
    for threads in (2, 3, 16):  # more threads than queries, too
        torch.set_num_threads(threads)
        assert torch.equal(run(attend_by_kernel, strided), once)


def test_kernels_are_for_inference_only() -> None:
    x = torch.zeros(1)
    assert fused_way(x, x) is attend_by_kernel
    assert fused_way(x.to("meta")) is None
    assert fused_way(x, torch.zeros(1, requires_grad=True)) is None
    with torch.no_grad():
        assert fused_way(x, torch.zeros(1, requires_grad=True)) is attend_by_kernel


def test_a_kernel_that_fails_or_is_wrong_is_found_out() -> None:
    """On a device whose kernels cannot be compiled every image would fail."""
    cpu = torch.device("cpu")
    check_kernel(attend_by_kernel, cpu)
    check_kernel(triton_way(), TRITONS_DEVICE)
    with pytest.raises(ArithmeticError, match="off by"):
        check_kernel(lambda *inputs: 1.001 * attend_by_kernel(*inputs), cpu)
    with pytest.raises(ArithmeticError, match="off by nan"):
        check_kernel(lambda *inputs: float("nan") * attend_by_kernel(*inputs), cpu)


@pytest.mark.parametrize("works", [True, False])
def test_where_the_triton_kernel_does_not_work_a_warning_says_so(works, monkeypatch, caplog) -> None:
    def check(attend, device) -> None:
        if not works:
            raise RuntimeError("Failed to find C compiler")

    kernel = triton_way()
    monkeypatch.setattr("m2f_core.layers.deformable_attention.check_kernel", check)
    assert _triton_way.__wrapped__(torch.device("cuda", 0)) is (kernel if works else None)
    assert ("Failed to find C compiler" in caplog.text) is not works


@st.composite
def any_inputs(draw: st.DrawFn, most: int) -> Inputs:
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
    batch, queries, heads, dim, points = (draw(st.integers(1, min(n, most))) for n in (3, 40, 4, 33, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, dim, generator=generator)
    reads = (batch, queries, heads, len(sizes), points)
    offsets = draw(st.sampled_from([0.1, 1.0, 9.0])) * torch.randn(*reads, 2, generator=generator)
    logits = 5 * torch.randn(*reads, generator=generator)
    return Inputs(value, sizes, torch.rand(queries, 2, generator=generator), offsets, logits)


@settings(max_examples=settings.default.max_examples // 2)  # numba compiles a kernel for nearly each of them
@given(any_inputs(most=40))
def test_ways_on_a_cpu_give_the_same(inputs: Inputs) -> None:
    expected = run(attend_by_grid_sample, inputs)
    for attend in (attend_by_embedding_bag, attend_by_kernel):
        torch.testing.assert_close(run(attend, inputs), expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=settings.default.max_examples // 5)  # the interpreter takes a second for one
@given(any_inputs(most=5))
def test_triton_gives_the_same(inputs: Inputs) -> None:
    torch.testing.assert_close(
        run("attend_by_triton", inputs), run(attend_by_grid_sample, inputs), rtol=1e-5, atol=2e-5
    )


def test_values_in_bfloat16_are_summed_in_float32() -> None:
    inputs = random_inputs("odd sizes")
    half = inputs._replace(value=inputs.value.bfloat16())
    expected = run(attend_by_grid_sample, half._replace(value=half.value.float()))
    torch.testing.assert_close(run(attend_by_kernel, half), expected, rtol=0, atol=5e-6)
    out = run("attend_by_triton", half)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0.01, atol=1e-3)
