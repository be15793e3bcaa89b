"""Train on label PNGs: python docs/tutorials/finetune_semantic.py CHECKPOINT IMAGES LABELS OUTPUT STEPS

IMAGES and LABELS are folders with files of equal names (without endings). A pixel of a label PNG is a class; 255 is
ignored. For other classes than the checkpoint's, pass id2label=... and ignore_mismatched_sizes=True to from_pretrained.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m2f_core import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

checkpoint, images, labels, output, steps = sys.argv[1:]
processor = Mask2FormerImageProcessor.from_pretrained(checkpoint, ignore_index=255)
model = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

paths = sorted(Path(images).iterdir())
maps = [Path(labels) / f"{path.stem}.png" for path in paths]
model.train()
torch.manual_seed(0)  # the loss reads masks at random points
for step in range(int(steps)):
    batch = [(2 * step + place) % len(paths) for place in range(2)]
    inputs = processor(
        images=[Image.open(paths[index]).convert("RGB") for index in batch],
        segmentation_maps=[np.asarray(Image.open(maps[index])) for index in batch],
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
