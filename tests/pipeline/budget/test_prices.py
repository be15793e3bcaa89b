"""The price table: which name counts for which device, and files that are no table of prices."""

import pytest

from pipeline.budget.prices import read_prices
from pipeline.errors import RunError


@pytest.fixture
def table(tmp_path):
    def written(text: str) -> str:
        (tmp_path / "prices.yaml").write_text(text)
        return str(tmp_path / "prices.yaml")

    return written


@pytest.mark.parametrize(
    ("device", "units", "price"),
    [
        ("NVIDIA L4", 1, 1.0),
        ("NVIDIA L40S", 0.25, 0.5),
        ("A100", 1, 3.0),  # as Ray names it
        ("NVIDIA A100-SXM4-80GB", 1, 4.0),  # of two names that occur, the longest
        ("NVIDIA A10G", 1, None),  # A10 is another GPU
        ("cpu", 4, 0.2),
        ("cpu", 0.5, 0.025),
    ],
)
def test_the_longest_name_that_occurs_as_words_counts(table, device, units, price):
    prices = read_prices(table("usd_per_hour: {cpu: 0.05, L4: 1, L40S: 2, A100: 3, A100-SXM4-80GB: 4, A10: 9}"))
    assert prices.of(device, units) == (None if price is None else pytest.approx(price))


def test_gpu_is_the_price_of_every_other_gpu_and_of_no_cpu(table):
    prices = read_prices(table("written: 2026-11-30\nusd_per_hour:\n  gpu: 2.5\n  L4: 0\n"))
    assert (prices.of("NVIDIA B200"), prices.of("NVIDIA L4"), prices.of("cpu")) == (2.5, 0.0, None)
    with pytest.raises(RunError, match=r"--prices .*prices.yaml has no price of cpu; add it below usd_per_hour$"):
        prices.need("cpu")


def test_the_table_of_the_program_has_prices_and_knows_no_device_that_it_does_not_name():
    prices = read_prices(None)
    assert 0 < prices.need("cpu") < prices.need("NVIDIA L4") < prices.need("NVIDIA H100 80GB HBM3")
    with pytest.raises(RunError, match=r"of the program has no price of Voodoo 2; add it .*or `gpu` for any GPU"):
        prices.need("Voodoo 2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "usd_per_hour must hold a price"),
        ("usd_per_hour: {}", "usd_per_hour must hold a price"),
        ("- 1", "names and values, not a list"),
        ("usd_per_hour: 2.5", "usd_per_hour must hold a price"),
        ("usd_per_hour: {L4: cheap}", "price of L4 is 'cheap'; write a number"),
        ("usd_per_hour: {L4: }", "price of L4 is None; write a number"),
        ("usd_per_hour: {L4: [1]}", "price of L4 is .'1'.; write a number"),
        ("usd_per_hour: {L4: -1}", "price of L4 is -1; it must lie in 0"),
        ("usd_per_hour: {L4: nan}", "price of L4 is nan; it must lie in 0"),
        ("usd_per_hour: {L4: 1, L4: 2}", "L4 is there twice"),
        ("usd_per_hour: {'': 1}", "'' is no name of a device"),
        ("usd_per_hour: {L4: 1}\ncurrency: EUR", "unknown names currency"),
        ("usd_per_hour: {L4: 1", "expected"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_one_line(table, text, said):
    with pytest.raises(RunError, match=said) as refused:
        read_prices(table(text))
    assert str(refused.value).startswith("--prices ") and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"--prices .*none.yaml: .*No such file"):
        read_prices(str(tmp_path / "none.yaml"))
