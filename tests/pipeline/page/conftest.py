"""Two runs over the same drawn images, and the page of the second, made once for all tests here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.evaluation_runs import MadeImage
from tests.support.page_runs import HOSTILE_ERROR, drawn_images, page_run, worsened


@dataclass(frozen=True)
class MadePage:
    root: Path
    before: list[MadeImage]
    now: list[MadeImage]
    html: Path

    @property
    def tables(self) -> str:
        return f"{self.root}/tables"

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads((self.html.parent / "report.json").read_text())


@pytest.fixture(scope="session")
def made_page(tmp_path_factory: pytest.TempPathFactory) -> MadePage:
    root = tmp_path_factory.mktemp("page")
    folder = root / "images"
    now = drawn_images(folder)
    before = worsened(np.random.default_rng(1), now)
    broken = MadeImage("<b>broken.png", (1, 1), (), None, error=HOSTILE_ERROR)
    page_run(root, folder, before, "first", 27)
    page_run(root, folder, [*now, broken], "second", 28)
    return MadePage(root, before, now, Path(publish_page(ReportSettings(f"{root}/tables")).address))
