"""What everything but the model takes for an image: the steps of a real run, from its own report.

    python tests/benchmarks/bench_steps.py [--images 96]

Scenes of 480x640 as JPEG go from a folder through `jobs/segment_bucket.py` with the checkpoint of the package, at
800:1333, on one model thread. `reduce` is time on the device, here the CPU; all other steps are CPU time. A GPU also
takes over `resize` and `reduce`: what is then left is printed too. The last line is one JSON document.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image

from tests.benchmarks.scripts import run_script

ON_A_GPU = ("resize", "model", "reduce")


def draw(folder: Path, number: int) -> Path:
    """A folder of so many JPEGs."""
    run_script("jobs/make_scenes.py", output=folder / "scenes", number=number, height=480, width=640)
    images = folder / "images"
    images.mkdir()
    for path in sorted((folder / "scenes" / "images").iterdir()):
        Image.open(path).convert("RGB").save(images / f"{path.stem}.jpg", quality=90)
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="scenes to segment")
    number = parser.parse_args().images
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images, output = draw(folder, number), folder / "output"
        kib = sum(path.stat().st_size for path in images.iterdir()) / number / 1024
        run_script(
            "jobs/segment_bucket.py",
            input=images,
            output=output,
            image_size="800:1333",
            cpus_per_actor=1,
            device="cpu",
        )
        [report] = output.glob("_runs/*/report.json")
        content = json.loads(report.read_text())
    step_ms: dict[str, float] = content["step_ms"]
    all_but_model = sum(ms for step, ms in step_ms.items() if step != "model")
    left_with_gpu = sum(ms for step, ms in step_ms.items() if step not in ON_A_GPU)
    print("  ".join(f"{step} {ms:.1f}" for step, ms in step_ms.items()), "ms an image")
    print(f"everything but the model {all_but_model:.1f} ms, of it on the CPU beside a GPU {left_with_gpu:.1f} ms")
    document = {
        "benchmark": "steps",
        "images": number,
        "kib": round(kib, 1),
        "segments": content["num_segments"],
        "step_ms": step_ms,
        "all_but_model_ms": round(all_but_model, 2),
        "left_with_gpu_ms": round(left_with_gpu, 2),
        "device_busy": content["device_busy"],
        "versions": {name: version(name) for name in ("torch", "ray", "numba", "pillow")},
        "python": platform.python_version(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
