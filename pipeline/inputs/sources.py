"""The inputs that a run's settings name."""

from itertools import chain

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.input_spec import InputFormat, InputSpec, Source, source_of
from pipeline.inputs.lists.manifest_files import is_manifest
from pipeline.inputs.selection import CONTAINERS
from pipeline.store.filesystem import INPUT_SCHEMES, store_errors_as
from pipeline.store.other.opening import open_input


def input_spec(settings: Settings) -> InputSpec:
    """What the run reads. RunError if an input cannot be opened or is given twice.

    The store is asked whether there is an object or folder with the name of an input that holds wildcards: then these
    are characters of the name.
    """
    _check_schemes(settings)
    access = settings.input_spec(()).access

    def is_there(uri: str) -> bool:
        filesystem, path = open_input(uri, access)
        with store_errors_as(RunError, f"--input {uri} cannot be read", denied=f"no permission to read --input {uri}"):
            return bool(filesystem.exists(path))

    sources = tuple(source_of(uri, is_there) for uri in settings.input)
    for number, source in enumerate(sources):
        filesystem, path = open_input(source.uri, access)
        if source in sources[:number]:
            raise RunError(f"--input {source} is given twice")
        wanted = _format_of_name(source)
        if settings.input_format == "auto" and wanted and filesystem.isfile(path):
            raise RunError(
                f"--input {source} seems to name images; give --input-format {wanted}, or images if it is one"
            )
    return settings.input_spec(sources)


def _format_of_name(source: Source) -> InputFormat | None:
    name = source.uri.lower().rpartition("/")[2]
    if name == "manifest.json":
        return "inventory"
    return "manifest" if is_manifest(name) and not name.endswith(tuple(chain(*CONTAINERS.values()))) else None


def _check_schemes(settings: Settings) -> None:
    if settings.allow_scheme and not settings.input_spec(()).names_its_images:
        raise RunError("--allow-scheme is for --input-format manifest and inventory")
    for scheme in settings.allow_scheme:
        if scheme not in INPUT_SCHEMES:
            raise RunError(
                f"--allow-scheme {scheme} is no store that this program reads; give {', '.join(INPUT_SCHEMES)}"
            )
