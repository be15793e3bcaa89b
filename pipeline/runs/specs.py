"""Settings of a run -> settings of its model actors."""

from pipeline.cluster.allotment import Allotment
from pipeline.config import Settings
from pipeline.guard import planted_faults
from pipeline.inputs.verified import MAX_OBJECT_BYTES
from pipeline.runs.check import Model
from pipeline.segment.spec import SegmentSpec

MAX_BATCH_PIXELS = 16 * 800 * 1344  # padded; a larger batch does not keep a GPU busier; small images are more per batch
_BATCH_SIZE_GPU, _BATCH_SIZE_CPU = 64, 1


def segment_spec(settings: Settings, model: Model, allotment: Allotment) -> SegmentSpec:
    """The settings of a model actor."""
    return SegmentSpec(
        model=settings.model,
        weights_sha256=model.weights_sha256,
        preprocess=settings.preprocess,
        image_size=settings.parsed_image_size(),
        exif=settings.exif,
        scaled_jpeg=settings.scaled_jpeg,
        max_image_pixels=settings.most_image_pixels(),
        tiling=settings.parsed_tile(),
        inference=model.inference,
        embeddings=settings.embeddings,
        keep_logits=settings.keep_logits,
        precision=settings.precision,
        device=allotment.device,
        threads=allotment.model_threads,
        batch_size=settings.batch_size or (_BATCH_SIZE_GPU if allotment.device == "cuda" else _BATCH_SIZE_CPU),
        # If --batch-size is given, the default pixel limit must not make batches smaller.
        max_batch_pixels=settings.max_batch_pixels or (2**40 if settings.batch_size else MAX_BATCH_PIXELS),
        shard_bytes=max(settings.shard_mib * 2**20, MAX_OBJECT_BYTES),
        gpu_share=allotment.model_gpus or 1.0,
        step_timeout=settings.step_timeout,
        planted_faults=planted_faults.are_asked_for(),
    )
