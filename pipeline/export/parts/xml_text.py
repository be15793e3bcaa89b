"""What XML cannot hold."""

import re

from pipeline.errors import RunError
from pipeline.export.format import Census

# Everything outside of the production `Char` of XML 1.0.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_for_xml(form: str, census: Census) -> None:
    """RunError if the name of a category has a character that XML cannot hold."""
    for category in census.categories:
        if _NOT_IN_XML.search(category["name"]):
            raise RunError(
                f"--format {form} is XML, which cannot hold the control character in the name {category['name']!r} of "
                f"category {category['id']}; use coco-instances"
            )
