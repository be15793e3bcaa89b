"""Generated image files of every layout that a container allows, and the arrays from which they were made.

Legend: H W pixels, C channels.
"""

import io
import itertools
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

H, W = 37, 50

LAYOUTS = ("strips", "tiles")
BYTE_ORDERS = ("<", ">")
CODECS = (None, "zlib")
CHANNELS = {"gray": 1, "gray, alpha": 2, "white is zero": 1, "RGB": 3, "RGBA": 4}
PLANES = [
    (colours, planar) for colours, number in CHANNELS.items() for planar in ("contig", "separate")[: min(number, 2)]
]
VARIANTS_OF_A_TIFF = len(LAYOUTS) * len(BYTE_ORDERS) * len(CODECS)

MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B")
MODES_OF_CODEC = {
    **dict.fromkeys(("tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd"), MODES),
    "jpeg": ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"),
    **dict.fromkeys(("raw", "packbits"), ("1", *MODES)),
    "group4": ("1",),
}


def smooth(channels: int, seed: int = 0) -> np.ndarray:
    """[H, W, C] from 0 to 1, without two equal channels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    waves = [0.5 + 0.5 * np.sin(rng.uniform(0.05, 0.3) * x + rng.uniform(0.05, 0.3) * y + k) for k in range(channels)]
    return np.stack(waves, axis=-1)


def colour_image() -> Image.Image:
    return Image.fromarray(np.rint(smooth(3) * 255).astype(np.uint8))


def photograph(seed: int = 0) -> Image.Image:
    """Smooth and rough at once, so that every part of the file holds pixels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 12, (120, 160, 3))
    waves = np.repeat(np.repeat(rng.uniform(0, 255, (6, 8, 3)), 20, axis=0), 20, axis=1)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def tiffs(colours: str, dtype: str, planar: str, big: bool) -> Iterator[tuple[object, bytes, np.ndarray]]:
    """(what, file, its pixels [H, W, 3]) for each layout, byte order and codec that tifffile writes alone."""
    num = CHANNELS[colours]
    bits = 8 * int(dtype[1])
    array = np.rint(smooth(num) * (2**bits - 1)).astype(dtype)
    expected = ((array[..., :3] if num > 2 else array[..., :1]) >> (bits - 8)).astype(np.uint8)
    expected_HW3 = np.broadcast_to(255 - expected if colours == "white is zero" else expected, (H, W, 3))
    for layout, order, codec in itertools.product(LAYOUTS, BYTE_ORDERS, CODECS):
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.moveaxis(array, -1, 0) if planar == "separate" else array if num > 1 else array[..., 0],
            photometric="rgb" if num > 2 else "miniswhite" if colours == "white is zero" else "minisblack",
            planarconfig=planar if num > 1 else None,
            extrasamples=["unassalpha"] if num in (2, 4) else None,
            tile=(16, 16) if layout == "tiles" else None,
            rowsperstrip=8 if layout == "strips" else None,
            compression=codec,
            byteorder=order,
            bigtiff=big,
            metadata=None,
        )
        yield (layout, order, codec), file.getvalue(), expected_HW3


def tiff_of_pillow(codec: str, mode: str, options: dict) -> tuple[bytes, np.ndarray]:
    """(file, its pixels [H, W, 3]), for codecs that tifffile writes only with other libraries."""
    if mode.startswith("I;16"):
        shades = np.rint(smooth(1)[..., 0] * 65535).astype("u2")
        image = Image.frombytes(mode, (W, H), shades.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        expected = (shades[..., None] >> 8).repeat(3, -1)
    else:
        image = colour_image().convert(mode)
        expected = np.asarray(image.convert("RGB"))
    file = io.BytesIO()
    image.save(file, "TIFF", compression=codec, **({"quality": 100} if codec == "jpeg" else {}), **options)
    return file.getvalue(), expected


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def avif(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "AVIF", quality=100, speed=8, **options)
    return file.getvalue()


def jp2_with_channels(order: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """(file, its pixels [H, W, 3]): channel c of the codestream is the colour order[c], as a definition box says."""
    array = np.rint(smooth(3) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[..., list(order)])).save(file, "JPEG2000", no_jp2=False, mct=0)
    data = file.getvalue()
    entries = b"".join(
        channel.to_bytes(2, "big") + bytes(2) + (colour + 1).to_bytes(2, "big") for channel, colour in enumerate(order)
    )
    box = b"cdef" + (3).to_bytes(2, "big") + entries
    box = (len(box) + 4).to_bytes(4, "big") + box
    at = data.index(b"jp2h") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    changed = (
        data[:at] + (length + len(box)).to_bytes(4, "big") + data[at + 4 : at + length] + box + data[at + length :]
    )
    return changed, array
