"""The index of a tar finds the images that Python's tarfile finds, and their bytes are read as tarfile reads them."""

import re
import tarfile
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support.tars import FORMATS, by_name, found_by_tarfile, member, tar_of

_PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "train", "Ä b", "a#2", "a" * 90, "日本", "%2f", "__MACOSX", "._a"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=130),
)
_NAMES = st.builds(
    lambda parts, suffix: "/".join(parts) + suffix,
    st.lists(_PARTS, min_size=1, max_size=4),
    st.sampled_from([".jpg", ".jpg", ".PNG", ".seg.tiff", ".json", ".tar", ".cls", ""]),
)
_FILES = st.builds(member, _NAMES, st.one_of(st.binary(max_size=20), st.integers(0, 5000).map(lambda n: b"x" * n)))
_OTHERS = st.builds(
    lambda name, kind: member(name, type=kind, linkname="a.jpg"),
    _NAMES,
    st.sampled_from([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
)


@st.composite
def tars(draw) -> bytes:
    members = draw(st.lists(st.one_of(_FILES, _FILES, _OTHERS), max_size=12))
    again = draw(st.lists(st.sampled_from(members), max_size=3)) if members else []
    # A hard link leads to the last member of a name before it; where that is no file, tarfile reads nothing.
    no_files = {info.name.rstrip("/") for info, _ in members if not info.isreg()}
    files = [info for info, _ in members + again if info.isreg() and info.name not in no_files]
    linked = draw(st.lists(st.tuples(_NAMES, st.sampled_from(files)), max_size=2)) if files else []
    links = [member(name, type=tarfile.LNKTYPE, linkname=to.name) for name, to in linked]
    try:
        return tar_of([*members, *again, *links], draw(st.sampled_from(FORMATS)))
    except ValueError:  # a name that USTAR cannot hold
        hypothesis.reject()


def without_programs(name: str) -> bool:
    return not re.search(r"(^|/)(\._[^/]*$|__MACOSX/)", name, re.DOTALL)


@hypothesis.given(tars())
def test_the_images_are_those_of_tarfile(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(data)
    expected = [(name, content) for name, content in found_by_tarfile(data) if without_programs(name)]
    found = by_name(path)
    assert list(found.values()) == [content for _, content in expected]
    names, seen = [name for name, _ in expected], Counter[str]()
    for key, name in zip(found, names, strict=True):
        seen[name] += 1
        assert key == (name if seen[name] == 1 else f"{name}#{seen[name]}")


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_of_each_format_is_read(tmp_path, form):
    names = ["a/1.jpg", "a/1.json", "a/2.PNG", "b" * 95 + "/" + "c" * 90 + ".jpg", "a/3.webp"]
    data = tar_of([member(name, name.encode() * 40) for name in names], form)
    (tmp_path / "a.tar").write_bytes(data)
    assert by_name(tmp_path / "a.tar") == {name: name.encode() * 40 for name in names if not name.endswith("json")}
