"""Objects of an input as a run lists and reads them, and as a store answers one request."""

from fsspec.asyn import sync

from pipeline.errors import ImageError
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.reads import ReadImage
from pipeline.store.other.answer import Answer
from pipeline.store.other.opening import open_input
from tests.support.listed import list_images


def read_all(*uris: str, step_timeout: float = 600, **fields) -> dict[str, bytes | ImageError]:
    """Each image of the inputs by its key. `fields` are those of InputSpec."""
    listed = list(list_images(*uris, **fields))
    stage = FetchImages(InputSpec(InputSpec.of(*uris).sources, **fields), step_timeout=step_timeout)
    found = stage.fetch_all(listed)
    return {image.image_key: r.data if isinstance(r, ReadImage) else r for image, r in zip(listed, found, strict=True)}


def ask(uri: str, etag: str = "", part: tuple[int, int] | None = None, most_bytes: int = 2**20) -> Answer:
    """The answer to one request of `OtherStore.ask`."""
    filesystem, path = open_input(uri)
    return sync(filesystem.loop, filesystem.ask, path, etag, part, most_bytes)
