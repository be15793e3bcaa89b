"""The embedding of a segment is what the class head reads: from the half floats, the head gives class and score."""

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.inference.tiling import Tiling
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.segment.postprocess import queries_of
from pipeline.segment.segmenter import Segmenter
from pipeline.telemetry.costs import Costs
from tests.support.segmenting import encoded, small_spec

KEEP_MOST = {"score_threshold": 0.0}
SETTINGS = {
    "panoptic": PanopticSettings("reference", overlap_threshold=0.0, mask_threshold=0.5, **KEEP_MOST),
    "panoptic, stuff fused": PanopticSettings("reference", 0.0, 0.0, 0.5, fuse_class_ids=frozenset(range(0, 200, 2))),
    "panoptic, hf": PanopticSettings("hf", overlap_threshold=0.0, mask_threshold=0.5, **KEEP_MOST),
    "instance": InstanceSettings("reference", top_k=20, **KEEP_MOST),
}


def probabilities(head: torch.nn.Module, embedding: bytes) -> np.ndarray:
    state = torch.from_numpy(np.frombuffer(embedding, "<f2").astype(np.float32))
    with torch.inference_mode():
        return head(state).softmax(-1).numpy()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_class_head_gives_the_row_from_the_embedding(name, tiny_checkpoint):
    spec = small_spec(tiny_checkpoint, inference=SETTINGS[name], embeddings=True)
    results = Segmenter(spec).segment([encoded(60, 80, seed) for seed in range(5)])
    head = load_checkpoint(tiny_checkpoint).class_predictor
    segments = [segment for result in results for segment in result.segments]
    assert segments
    for segment in segments:
        of_classes = probabilities(head, segment.embedding)
        if "panoptic" in name:
            assert of_classes.argmax() == segment.class_id
            assert of_classes[segment.class_id] == pytest.approx(segment.score, abs=0.01)
        else:  # the score of an instance is the class's times the mask's
            assert of_classes[segment.class_id] >= segment.score - 0.01


def test_a_segment_of_tiles_has_the_embedding_of_its_best_piece(tiny_checkpoint):
    """A thing keeps the score of its best piece."""
    spec = small_spec(tiny_checkpoint, inference=SETTINGS["panoptic"], embeddings=True, tiling=Tiling(96, 24))
    [result] = Segmenter(spec).segment([encoded(200, 150)])
    head = load_checkpoint(tiny_checkpoint).class_predictor
    assert result.segments
    for segment in result.segments:
        assert probabilities(head, segment.embedding)[segment.class_id] == pytest.approx(segment.score, abs=0.01)


def test_without_the_flag_there_is_none_and_segments_are_the_same(tiny_checkpoint):
    spec = small_spec(tiny_checkpoint, inference=SETTINGS["panoptic"])
    [plain] = Segmenter(spec).segment([encoded()])
    with_embeddings = small_spec(tiny_checkpoint, inference=SETTINGS["panoptic"], embeddings=True)
    [rich] = Segmenter(with_embeddings).segment([encoded()])
    assert all(segment.embedding is None for segment in plain.segments)
    assert [(s.class_id, s.score, s.mask) for s in plain.segments] == [
        (s.class_id, s.score, s.mask) for s in rich.segments
    ]


def test_semantic_segmentation_has_no_queries_to_give(tiny_checkpoint):
    with pytest.raises(RunError, match="--embeddings belongs to --task panoptic and instance, not semantic"):
        Settings(input=("in",), output="out", task="semantic", embeddings=True)
    spec = small_spec(tiny_checkpoint, inference=SemanticSettings.defaults("reference", "masks"))
    network = Segmenter(spec).network
    image = network.prepare(Image.new("RGB", (80, 60)), network.processor.geometry(60, 80), "an image")
    [inferred] = network.run([image], Costs())
    assert inferred.embeddings is None
    with pytest.raises(ValueError, match="have no query"):
        queries_of(inferred.result)


def test_the_flag_is_a_part_of_the_fingerprint_only_if_it_is_given():
    plain, rich = (Settings(input=("in",), output="out", embeddings=given) for given in (False, True))
    assert "embeddings" not in plain.results_dict() and rich.results_dict()["embeddings"] is True
