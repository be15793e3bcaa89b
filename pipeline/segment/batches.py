"""Which images share a batch."""

from collections.abc import Callable, Sequence


def plan_batches(
    padded_hws: Sequence[tuple[int, int] | None], most_of: Callable[[tuple[int, int]], int]
) -> list[list[int]]:
    """Group indices by padded size; a group of size hw has at most `most_of(hw)` of them. The order is kept.

    Entries that are None are left out.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, padded_hw in enumerate(padded_hws):
        if padded_hw is not None:
            groups.setdefault(padded_hw, []).append(index)
    steps = {padded_hw: most_of(padded_hw) for padded_hw in groups}
    return [group[i : i + steps[hw]] for hw, group in groups.items() for i in range(0, len(group), steps[hw])]
