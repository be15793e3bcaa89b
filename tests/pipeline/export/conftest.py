"""Published runs that the tests of all formats export."""

import pytest

from tests.support.evaluation_runs import Place
from tests.support.published_runs import made_images, write_published


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> str:
    """A panoptic run of images with holes, parts, void pixels; one image failed, one has no segment."""
    return write_published(Place(str(tmp_path_factory.mktemp("panoptic"))), made_images())


@pytest.fixture(scope="session")
def instances(tmp_path_factory) -> str:
    """An instance run whose masks overlap."""
    images = made_images(1, disjoint=False)
    return write_published(Place(str(tmp_path_factory.mktemp("instance"))), images, task="instance")
