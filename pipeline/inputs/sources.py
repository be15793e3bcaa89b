"""The inputs that a run's settings name."""

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec, source_of
from pipeline.store.filesystem import open_filesystem, store_errors_as


def input_spec(settings: Settings) -> InputSpec:
    """What the run reads. RunError if an input cannot be opened or is given twice.

    The store is asked whether there is an object or folder with the name of an input that holds wildcards: then these
    are characters of the name.
    """
    access = settings.input_spec(()).access

    def is_there(uri: str) -> bool:
        filesystem, path = open_filesystem(uri, access)
        with store_errors_as(RunError, f"--input {uri} cannot be read", denied=f"no permission to read --input {uri}"):
            return bool(filesystem.exists(path))

    sources = tuple(source_of(uri, is_there) for uri in settings.input)
    for number, source in enumerate(sources):
        open_filesystem(source.uri, access)
        if source in sources[:number]:
            raise RunError(f"--input {source} is given twice")
    return settings.input_spec(sources)
