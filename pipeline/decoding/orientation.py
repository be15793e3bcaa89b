"""EXIF orientation: which way an image is turned, and where its pixels were stored before it was turned.

Orientation 1 is upright. 2, 3 and 4 mirror or turn the image by 180 degrees; 5 to 8 also swap its sides.
"""

from PIL import ExifTags, Image, ImageFile

from m2f_core.masks.box import Box

# EXIF orientation -> the operation that turns the stored image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = frozenset((5, 6, 7, 8))
# After the sides are swapped, where they are: rows (columns) are stored in the opposite order.
_ROWS_REVERSED, _COLUMNS_REVERSED = frozenset((3, 4, 6, 7)), frozenset((2, 3, 7, 8))
_PNG_KEYWORDS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def read_orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """EXIF orientation 1..8 of an image that is open but not loaded; 1 if it is absent or cannot be read."""
    if image.format == "TIFF":
        return 1  # Pillow applies a TIFF's own orientation: to the size when opening, to the pixels when loading
    if image.format == "HEIF":
        return 1  # its boxes turn it when it is decoded, whatever EXIF says
    if image.format == "PNG":
        # In a PNG, EXIF data may follow the pixels, so the pixels are decoded first, but only if there is EXIF data.
        if not any(keyword in data for keyword in _PNG_KEYWORDS):
            return 1
        image.load()  # outside of `try`, so that broken pixels are an error
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image, or a part of it, turned upright."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def upright_hw(stored_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The size of the image after it is turned upright; the same function leads back."""
    height, width = stored_hw
    return (width, height) if orientation in SWAPS_SIDES else stored_hw


def stored_box(box: Box, stored_hw: tuple[int, int], orientation: int) -> Box:
    """Where the pixels of a box of the upright image lie in the stored image."""
    top, left, bottom, right = box
    if orientation in SWAPS_SIDES:
        top, left, bottom, right = left, top, right, bottom
    height, width = stored_hw
    if orientation in _ROWS_REVERSED:
        top, bottom = height - bottom, height - top
    if orientation in _COLUMNS_REVERSED:
        left, right = width - right, width - left
    return Box(top, left, bottom, right)
