"""Make the pictures of README.md again, from the result of `make demo`.

    .venv/bin/python tools/readme_pictures.py [--tables .demo/output] [--to docs/pictures]

segments.jpg: scenes with their segments below. report.jpg: the top of the report page, in the Chromium of the system.
All that is seen is drawn by pipeline/scenes.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

from jobs.demo import FOLDER, draw_pictures
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings

WIDTH, HEIGHT = 1280, 1000  # of the window
MOST_BYTES = 150_000  # of a picture
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draw_segments(tables: Path, folder: Path) -> Image.Image:
    [run] = (tables / "segments").glob("run=*")
    draw_pictures(tables, run.name, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.convert("RGB")


def photograph_page(tables: Path, folder: Path) -> Image.Image:
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit(f"no browser: none of {', '.join(BROWSERS)} is on PATH (Debian: apt-get install chromium)")
    html = publish_page(ReportSettings(str(tables), to=str(folder / "page"), compare=False)).address
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"file://{html}")
        page.wait_for_selector("#strip .pic")
        page.evaluate("Promise.all([...document.images].map(one => one.decode()))")
        page.screenshot(path=folder / "page.png")
        browser.close()
    with Image.open(folder / "page.png") as shot:
        return shot.convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    """As a JPEG of at most MOST_BYTES."""
    for quality in range(90, 30, -5):
        picture.save(path, "JPEG", quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= MOST_BYTES:
            print(f"{path}: {path.stat().st_size:,} bytes, quality {quality}")
            return
    sys.exit(f"{path} does not fit into {MOST_BYTES:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, default=FOLDER / "output")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    if not args.tables.is_dir():
        sys.exit(f"{args.tables} is not there; run `make demo` first, or name --tables")
    args.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        save(draw_segments(args.tables, Path(temporary)), args.to / "segments.jpg")
        save(photograph_page(args.tables, Path(temporary)), args.to / "report.jpg")


if __name__ == "__main__":
    main()
