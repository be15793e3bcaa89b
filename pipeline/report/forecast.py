"""Print a forecast: the times of the sample, time and cost of the run, and how many actors the limits need."""

from collections.abc import Callable
from datetime import UTC, datetime

from rich.table import Table

from pipeline.budget.prices import CPU, Prices
from pipeline.forecast.forecast import Between, Forecast, Work, choose_actors, forecast
from pipeline.forecast.measured import Measured
from pipeline.report.summary import add_steps
from pipeline.telemetry.console import dollars, hms, output_console


def print_forecast(
    measured: Measured,
    work: Work,
    bounds: tuple[int, int],
    prices: Prices,
    deadline: datetime | None,
    max_cost: float | None,
) -> None:
    """Print the forecast of a run of `work` that begins now, for `bounds` (min, max) of its model actors.

    `deadline`, `max_cost` (US dollars): the limits of the run, which choose the number of actors.
    """
    console = output_console()
    left = None if deadline is None else (deadline - datetime.now(UTC)).total_seconds()
    number = choose_actors(measured, work, bounds, prices, left, max_cost)
    console.print(_sample(measured))
    columns = ("model actors", "time", "hours of devices", "US dollars")
    table = Table(*columns, title=f"forecast of {work.num_images:,} images")
    for actors in sorted({*_ladder(*bounds), number}):
        one = forecast(measured, work, actors, prices)
        table.add_row(f"{one.num_actors:,}", *_of_number(one), style="bold" if actors == number else None)
    console.print(table)
    chosen = forecast(measured, work, number, prices)
    for name, size in chosen.bytes_of.items():
        console.print(f"{name}: {_between(size, _size)}")
    console.print("in brackets: what 95 % of such samples give; ups and downs of the machine come on top")
    if chosen.cost is None:
        console.print(f"--prices {prices.source} has no price of {measured.device_name}")
    if left is not None:
        ends = "is done" if chosen.seconds.surely_below <= left else "is not surely done"
        console.print(f"with {chosen.actors} the run {ends} at {deadline:%Y-%m-%dT%H:%M:%SZ}, {hms(left)} from now")
    if max_cost is not None and chosen.cost is not None:
        ends = "stays below" if chosen.cost.surely_below <= max_cost else "may reach"
        console.print(f"with {chosen.actors} the run {ends} --max-cost {max_cost:g}")


def _sample(measured: Measured) -> Table:
    table = Table(title=f"sample of {measured.num_images:,} images on {measured.device_name}", show_header=False)
    units = "CPUs" if measured.device_name == CPU else "GPUs"
    table.add_row("failed", f"{measured.num_failed:,}")
    table.add_row("model actors", f"{measured.num_actors} of {measured.units_per_actor:g} {units} each")
    begin, load = measured.begin_seconds, measured.load_seconds
    table.add_row("s to begin", f"{begin:,.1f} until actors start, {load:,.1f} to load the model")
    table.add_row("s an image", f"{measured.image_seconds:,.4f} for one actor")
    add_steps(table, measured.step_ms)
    table.add_row("s to end", f"{measured.write_seconds:,.1f} to write a shard, {measured.end_seconds:,.1f} to publish")
    return table


def _of_number(one: Forecast) -> tuple[str, str, str]:
    """Time, hours of devices and cost."""
    return (
        _between(one.seconds, hms),
        _between(one.device_hours, "{:,.2f}".format),
        "" if one.cost is None else _between(one.cost, dollars),
    )


def _ladder(least: int, most: int) -> list[int]:
    """The bounds, and the powers of two between them."""
    between = (2**power for power in range(least.bit_length(), most.bit_length()))
    return [least, *(number for number in between if least < number < most), most]


def _between(one: Between, shown: Callable[[float], str]) -> str:
    """`2:18:00 (2:10:00 .. 2:26:00)`"""
    if one.low is None or one.high is None:
        return shown(one.value)
    return f"{shown(one.value)} ({shown(one.low)} .. {shown(one.high)})"


def _size(size: float) -> str:
    """`12.5 MiB`"""
    units = ("KiB", "MiB", "GiB", "TiB")
    power = next((power for power in range(1, len(units)) if size < 1024 ** (power + 1)), len(units))
    return f"{size / 1024**power:,.1f} {units[power - 1]}"
