"""Planted faults: which image does what, and who asks for it."""

import pytest

from pipeline.drill.sample import harmful_images
from pipeline.guard import planted_faults


@pytest.mark.parametrize("fault", planted_faults.FAULTS)
def test_an_image_does_what_the_marker_at_its_end_says_and_nothing_else(monkeypatch, fault):
    done = []
    faults = {name: lambda name=name: done.append(name) for name in planted_faults.FAULTS}
    monkeypatch.setattr(planted_faults, "FAULTS", faults)
    planted_faults.trip(b"image" + planted_faults.marker(fault))
    planted_faults.trip(b"image" + planted_faults.marker(fault) + b"\n")
    assert done == [fault]


def test_only_the_value_one_asks_for_them(monkeypatch):
    monkeypatch.delenv(planted_faults.VARIABLE, raising=False)
    assert not planted_faults.are_asked_for()
    for value, asked in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(planted_faults.VARIABLE, value)
        assert planted_faults.are_asked_for() is asked


def test_a_fault_without_a_function_has_no_marker():
    with pytest.raises(AssertionError, match="sneeze"):
        planted_faults.marker("sneeze")


def test_deadly_images_of_a_drill_carry_markers_that_are_known():
    images = list(harmful_images(b"image", deadly=True))
    known = {planted_faults.marker(name) for name in planted_faults.FAULTS}
    assert [image.name for image in images if any(image.data.endswith(marker) for marker in known)] == [
        "abort",
        "allocate",
        "hang",
    ]
