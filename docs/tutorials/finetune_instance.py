"""Train on maps of instances: python docs/tutorials/finetune_instance.py CHECKPOINT IMAGES MAPS OUTPUT STEPS

IMAGES and MAPS are folders with files of equal names (without endings). In a map, red is the class and green numbers
the objects of the image from 1, as in the small ADE20K set of many tutorials; green 0 is no object.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m2f_core import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

checkpoint, images, labels, output, steps = sys.argv[1:]
processor = Mask2FormerImageProcessor.from_pretrained(checkpoint, ignore_index=0)
model = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)


def objects(path: Path) -> tuple[np.ndarray, dict[int, int]]:
    """The map of object numbers, and the class of each object."""
    pixels = np.asarray(Image.open(path))
    classes, numbers = pixels[..., 0], pixels[..., 1]
    return numbers, {int(number): int(classes[numbers == number][0]) for number in np.unique(numbers)}


paths = sorted(Path(images).iterdir())
maps = [Path(labels) / f"{path.stem}.png" for path in paths]
model.train()
torch.manual_seed(0)  # the loss reads masks at random points
for step in range(int(steps)):
    batch = [(2 * step + place) % len(paths) for place in range(2)]
    found = [objects(maps[index]) for index in batch]
    inputs = processor(
        images=[Image.open(paths[index]).convert("RGB") for index in batch],
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
