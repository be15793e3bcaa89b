"""Sizes on which post-processing is tested: mask logits [h, w], and what the image went through."""

from m2f_core.images.geometry import ImageGeometry

# Real sizes take seconds a scene; a quarter of them has the same ratios, remainders and padding.
GEOMETRIES = {
    "coco landscape": ((50, 68), ImageGeometry((120, 160), (200, 267), (200, 272))),
    "padding in both axes": ((56, 72), ImageGeometry((210, 275), (198, 260), (224, 288))),
    "padding larger than the image": ((64, 64), ImageGeometry((90, 70), (100, 80), (256, 256))),
    "upscaled to the network": ((50, 50), ImageGeometry((24, 29), (197, 200), (200, 200))),
    "original 4x the padded size": ((12, 16), ImageGeometry((192, 255), (48, 64), (48, 64))),
    "original far below the logits": ((50, 68), ImageGeometry((8, 11), (200, 267), (200, 272))),
    "nothing is resized but the logits": ((40, 48), ImageGeometry((160, 192), (160, 192), (160, 192))),
    "width 1": ((40, 8), ImageGeometry((159, 1), (160, 32), (160, 32))),
    "height 1": ((8, 40), ImageGeometry((1, 200), (32, 160), (32, 160))),
    "one pixel": ((8, 8), ImageGeometry((1, 1), (32, 32), (32, 32))),
    "one logit": ((1, 1), ImageGeometry((20, 20), (4, 4), (4, 4))),
    "logits finer than the padded size": ((90, 120), ImageGeometry((70, 50), (30, 40), (32, 48))),
    "one tile and a bit": ((20, 20), ImageGeometry((17, 33), (80, 80), (80, 80))),
}
SMALL = GEOMETRIES["padding in both axes"]
FULL_SIZE = (200, 272), ImageGeometry((480, 640), (800, 1067), (800, 1088))
