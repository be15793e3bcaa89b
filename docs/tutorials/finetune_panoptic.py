"""Train on COCO panoptic data: python docs/tutorials/finetune_panoptic.py CHECKPOINT IMAGES PANOPTIC_JSON OUTPUT STEPS

The PNGs lie in the folder that is named as the JSON file, without `.json`. The classes of the checkpoint are the
categories of the JSON file in its order.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m2f_core import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

checkpoint, images, gt, output, steps = sys.argv[1:]
processor = Mask2FormerImageProcessor.from_pretrained(checkpoint, ignore_index=0)
model = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

content = json.loads(Path(gt).read_text())
class_of = {category["id"]: class_id for class_id, category in enumerate(content["categories"])}
names = {image["id"]: image["file_name"] for image in content["images"]}


def segments(annotation: dict) -> tuple[np.ndarray, dict[int, int]]:
    """A map of segments, numbered from 1 (0 is no segment), and the class of each segment."""
    png = Image.open(Path(gt.removesuffix(".json")) / annotation["file_name"])
    red, green, blue = np.moveaxis(np.asarray(png).astype(int), 2, 0)
    ids = red + 256 * green + 65536 * blue
    numbers, classes = np.zeros(ids.shape, np.uint8), {}
    for number, segment in enumerate(annotation["segments_info"], 1):
        numbers[ids == segment["id"]] = number
        classes[number] = class_of[segment["category_id"]]
    return numbers, classes


annotations = content["annotations"]
model.train()
torch.manual_seed(0)  # the loss reads masks at random points
for step in range(int(steps)):
    batch = [annotations[(2 * step + place) % len(annotations)] for place in range(2)]
    found = [segments(annotation) for annotation in batch]
    inputs = processor(
        images=[Image.open(Path(images) / names[annotation["image_id"]]).convert("RGB") for annotation in batch],
        segmentation_maps=[numbers for numbers, _ in found],
        instance_id_to_semantic_id=[classes for _, classes in found],
        return_tensors="pt",
    )
    loss = model(**inputs).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.6f}")

model.save_pretrained(output)
processor.save_pretrained(output)
