"""A glance at each fuzzed reader with a few hundred changed seeds; `make fuzz` does it for millions."""

import random

import pytest

from tests.fuzz.targets import TARGETS, FindingError, Target

CHANGED = 25  # of each target
SLOW = {"config": 3, "plan": 10, "tar_index": 10}  # builds a model; reads Parquet


def changed(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes replaced, cut out or doubled, as fuzzers begin."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(changed) + 1), chance.randint(1, 8)
        piece = chance.choice([chance.randbytes(length), b"[" * 300, b"9" * 40, b"../" * 3, b"\xff" * 4, changed[-at:]])
        changed[at : at + chance.choice([0, length])] = piece
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds_end_in_a_result_or_a_named_error(name):
    target, chance = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    target(b"")
    assert any(target(data) for data in chance.sample(list(seeds), min(len(seeds), 9))), "no seed is sound"
    for _ in range(SLOW.get(name, CHANGED)):
        target(changed(chance.choice(seeds), chance))


def test_what_a_target_must_not_do_is_a_finding():
    def reads(data: bytes) -> object:
        if data == b"stack":
            raise RuntimeError("deep")
        if data == b"lines":
            raise ValueError("one\ntwo")
        if data == b"memory":
            return bytearray(1100 * 2**20)
        raise ValueError("a line")

    target = Target(reads, lambda: [b""], (ValueError,))
    assert not target(b"fine")
    for data, said in ((b"stack", "RuntimeError: deep"), (b"lines", "several lines"), (b"memory", "MiB")):
        with pytest.raises(FindingError, match=said):
            target(data)
