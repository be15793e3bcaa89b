"""What ONNX needs beside the program: the extra `onnx`. Nothing heavy is imported here."""

from importlib.util import find_spec

from pipeline.errors import RunError

_EXTRA = "onnx"


def check_extra() -> None:
    """RunError if the libraries that write ONNX, or onnxruntime, which reads it back, are not installed."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise RunError(
            f"--format onnx needs the extra `{_EXTRA}` ({', '.join(missing)} missing): "
            f"pip install 'm2f-pipeline[{_EXTRA}]'"
        )
