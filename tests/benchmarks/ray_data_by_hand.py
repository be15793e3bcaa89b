"""The same job without m2f-pipeline, as a competent user would write it: Ray Data, transformers and pycocotools.

    python tests/benchmarks/ray_data_by_hand.py --input s3://BUCKET --output s3://BUCKET --model FOLDER --threads N

Images are read by Ray Data, segmented by an actor that holds transformers' model and processor, one at a time, because
transformers pads a batch of several sizes and then gives other masks; every segment becomes a row with COCO's RLE, and
Ray Data writes the rows as Parquet. Prints the seconds from the first image in the actor to the end of the writing, and
the number of segments, as one JSON document.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
import pyarrow.fs
import ray
import ray.data
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil


class Segment:
    def __init__(self, model: str, threads: int, stuff: list[int], began: str):
        torch.set_num_threads(threads)
        self.model = Mask2FormerForUniversalSegmentation.from_pretrained(model).eval()
        self.processor = Mask2FormerImageProcessorPil.from_pretrained(model)
        self.stuff = set(stuff)
        self.began = Path(began)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self.began.exists():
            self.began.write_text(str(time.time()))
        rows = [row for path, data in zip(batch["path"], batch["bytes"], strict=True) for row in self.rows(path, data)]
        return {
            name: [row[name] for row in rows] for name in ("path", "id", "label_id", "score", "area", "bbox", "rle")
        }

    def rows(self, path: str, data: bytes) -> list[dict[str, Any]]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        inputs = self.processor(image, return_tensors="pt")
        with torch.inference_mode():
            outputs = self.model(**inputs)
        [result] = self.processor.post_process_panoptic_segmentation(
            outputs, threshold=0.5, label_ids_to_fuse=self.stuff, target_sizes=[image.size[::-1]]
        )
        panoptic = result["segmentation"].numpy()
        rows = []
        for info in result["segments_info"]:
            rle = coco.encode(np.asfortranarray(panoptic == info["id"], dtype=np.uint8))
            rows.append(
                {
                    "path": path,
                    "id": info["id"],
                    "label_id": info["label_id"],
                    "score": info["score"],
                    "area": int(coco.area(rle)),
                    "bbox": coco.toBbox(rle).tolist(),
                    "rle": rle["counts"].decode(),
                }
            )
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--stuff", type=int, nargs="*", default=[], help="label ids to fuse")
    args = parser.parse_args()
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    store = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    # A CPU more than the actor has, for reading and writing, as jobs/segment_bucket.py starts Ray.
    ray.init(address="local", num_cpus=args.threads + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder:
        began = Path(folder) / "began"
        (
            ray.data.read_binary_files(args.input, include_paths=True, filesystem=store)
            .map_batches(
                Segment,
                fn_constructor_args=(args.model, args.threads, args.stuff, str(began)),
                batch_size=4,
                num_cpus=args.threads,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
            .write_parquet(args.output, filesystem=store)
        )
        seconds = time.time() - float(began.read_text())
    num_segments = ray.data.read_parquet(args.output, filesystem=store).count()
    print(json.dumps({"seconds": seconds, "segments": num_segments}))


if __name__ == "__main__":
    main()
