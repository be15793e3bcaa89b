"""Tars for tests, and the images that Python's tarfile finds in them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.reads import ReadImage
from pipeline.inputs.tar.index import IMAGE_SUFFIXES
from tests.support.listed import list_images

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def found_by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each member that is an image, links followed, in the order of the tar."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        files = [one for one in tar.getmembers() if one.isreg() or one.islnk()]
        images = [one for one in files if one.name.lower().endswith(IMAGE_SUFFIXES)]
        return [(one.name, tar.extractfile(one).read()) for one in images]


def read_all(uri: str) -> dict[str, bytes | str]:
    """The bytes of each listed image by its key, or the text of its error, in the order of the listing."""
    images = list(list_images(uri))
    results = FetchImages(InputSpec.of(uri)).fetch_all(images)
    read = {
        image.image_key: result.data if isinstance(result, ReadImage) else str(result)
        for image, result in zip(images, results, strict=True)
    }
    assert len(read) == len(images), "two images have one key"
    return read


def by_name(path: Path) -> dict[str, bytes | str]:
    """As `read_all`, for a tar on the disk: by the name behind `<tar>#`, "" for the tar itself."""
    uri = f"file://{path}"
    return {key.removeprefix(uri).removeprefix("#"): value for key, value in read_all(str(path)).items()}
