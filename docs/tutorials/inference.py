"""Segment one image in three ways: python docs/tutorials/inference.py CHECKPOINT IMAGE FOLDER

Writes semantic.png, instance.png and panoptic.png with a legend into FOLDER, and prints what was found, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m2f_core import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor
from m2f_core.masks.overlay import draw_segments, with_legend

checkpoint, path, folder = sys.argv[1:]
image = Image.open(path).convert("RGB")
processor = Mask2FormerImageProcessor.from_pretrained(checkpoint)
model = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)

inputs = processor(images=image, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)

sizes = [(image.height, image.width)]
semantic = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
instance = processor.post_process_instance_segmentation(outputs, target_sizes=sizes)[0]
panoptic = processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes, label_ids_to_fuse=set())[0]

names = model.config.id2label
classes = [{"id": class_id, "label_id": class_id} for class_id in semantic.unique().tolist()]
found = {
    "semantic": (semantic, classes),
    "instance": (instance["segmentation"], instance["segments_info"]),
    "panoptic": (panoptic["segmentation"], panoptic["segments_info"]),
}
Path(folder).mkdir(parents=True, exist_ok=True)
for task, (found_map, segments) in found.items():
    masks = [(found_map == segment["id"]).numpy() for segment in segments]
    drawn = draw_segments(np.asarray(image), masks)
    drawn = with_legend(drawn, [names[segment["label_id"]] for segment in segments])
    Image.fromarray(drawn).save(Path(folder) / f"{task}.png")
    pixels = [int(mask.sum()) for mask in masks]
    print(json.dumps({"task": task, "segments": segments, "pixels": pixels}))
