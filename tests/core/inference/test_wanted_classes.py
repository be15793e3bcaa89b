"""Results of some classes alone are those that a run of all classes gives of these classes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.instance import InstanceResult, instance_segments
from m2f_core.inference.panoptic import PanopticResult, panoptic_segments
from m2f_core.inference.semantic import SemanticResult, semantic_segments
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from tests.support.decoder_scenes import NUM_CLASSES, STUFF_CLASS_IDS, decoder_outputs
from tests.support.device_reduction import reduce_as_on_device

torch.set_num_threads(1)

GEOMETRY = ImageGeometry(original_hw=(96, 120), resized_hw=(120, 150), padded_hw=(128, 160))
MASK_HW = (GEOMETRY.padded_hw[0] // 4, GEOMETRY.padded_hw[1] // 4)
SETTINGS = [
    PanopticSettings.defaults("reference", STUFF_CLASS_IDS),
    InstanceSettings.defaults("reference"),
    InstanceSettings.defaults("hf"),
    SemanticSettings.defaults("reference"),
    SemanticSettings.defaults("reference", "scores"),
    SemanticSettings.defaults("hf"),
]
REDUCE = {
    PanopticSettings: panoptic_segments,
    InstanceSettings: instance_segments,
    SemanticSettings: semantic_segments,
}


def found(result: Any) -> list[tuple[int, float, bytes]]:
    """(class, score, mask) of each segment, in the order of the result."""
    if isinstance(result, InstanceResult):
        return [(one.class_id, one.score, one.mask.counts) for one in result.instances]
    assert isinstance(result, (PanopticResult, SemanticResult))
    label_map = result.label_map_HW
    assert set(np.unique(label_map)) <= {0, *(info.segment_id for info in result.infos)}
    return [(i.class_id, i.score, np.packbits(label_map == i.segment_id).tobytes()) for i in result.infos]


@pytest.mark.parametrize("chosen", SETTINGS, ids=lambda chosen: f"{chosen.task} {chosen.mode}")
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), places=st.sets(st.integers(0, 30), max_size=5))
def test_the_segments_are_those_of_a_run_of_all_classes(chosen: Any, seed: int, places: set[int]) -> None:
    logits, masks = decoder_outputs(seed, MASK_HW)
    reduce = REDUCE[type(chosen)]
    of_all = found(reduce(logits, masks, GEOMETRY, chosen))
    wanted = frozenset(one[0] for place, one in enumerate(of_all) if place in places) | {NUM_CLASSES - 1}
    expected = [one for one in of_all if one[0] in wanted]
    of_some = replace(chosen, wanted_class_ids=wanted)

    assert found(reduce(logits, masks, GEOMETRY, of_some)) == expected
    [on_device] = reduce_as_on_device([(logits, masks)], [GEOMETRY], of_some)
    assert [one[0] for one in found(on_device)] == [one[0] for one in expected]


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), places=st.sets(st.integers(0, 30), max_size=5))
def test_in_mode_hf_panoptic_rows_are_those_of_a_run_of_all_classes(seed: int, places: set[int]) -> None:
    """Their ids may differ: as in transformers, one id may stand for several classes, and there are fewer of these."""
    chosen = PanopticSettings.defaults("hf", STUFF_CLASS_IDS)
    logits, masks = decoder_outputs(seed, MASK_HW)
    of_all = [(info.class_id, info.score) for info in panoptic_segments(logits, masks, GEOMETRY, chosen).infos]
    wanted = frozenset(one[0] for place, one in enumerate(of_all) if place in places) | {NUM_CLASSES - 1}

    of_some = panoptic_segments(logits, masks, GEOMETRY, replace(chosen, wanted_class_ids=wanted))

    assert [(info.class_id, info.score) for info in of_some.infos] == [one for one in of_all if one[0] in wanted]


def test_panoptic_segments_of_some_classes_have_no_gaps_in_their_ids() -> None:
    chosen = PanopticSettings.defaults("reference", STUFF_CLASS_IDS)
    logits, masks = decoder_outputs(3, MASK_HW)
    of_all = panoptic_segments(logits, masks, GEOMETRY, chosen)
    last = of_all.infos[-1].class_id

    of_one = panoptic_segments(logits, masks, GEOMETRY, replace(chosen, wanted_class_ids=frozenset({last})))

    assert len(of_one.infos) < len(of_all.infos)
    assert [info.segment_id for info in of_one.infos] == list(range(1, len(of_one.infos) + 1))


def test_no_mask_is_looked_at_where_no_query_is_of_a_wanted_class() -> None:
    chosen = PanopticSettings.defaults("reference", STUFF_CLASS_IDS)
    logits, masks = decoder_outputs(3, MASK_HW)
    absent = frozenset(range(NUM_CLASSES)) - set(logits.argmax(-1).tolist())
    assert absent

    nothing = panoptic_segments(
        logits, torch.full_like(masks, torch.nan), GEOMETRY, replace(chosen, wanted_class_ids=absent)
    )

    assert nothing.infos == () and not nothing.label_map_HW.any()
