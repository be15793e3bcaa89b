"""Errors of the Delta library in words."""

import pytest

from pipeline.tables.stream_table import plain


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError("Generic S3 error\n  \x1b[31m↳\x1b[0m Error performing PUT"), "Generic S3 error Error performing PUT"),
        (OSError(" "), "OSError"),
        (OSError("a\x1b[2Jb"), "a\\x1b[2Jb"),
    ],
)
def test_an_error_of_the_delta_library_is_one_line_without_colours(raised, said):
    assert plain(raised) == said
