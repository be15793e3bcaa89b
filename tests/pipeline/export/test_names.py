"""File names: different keys never share a file, on any file system, and plain keys stay as they are."""

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.export.names import extension_of, folded, needs_digest, plain_name, shared_folder, with_digest

PARTS = st.one_of(
    st.sampled_from(["a", "A", "b", "a.png", "a.PNG", "a_b", "ä", "a\u0308", "ß", "ss", "con", "x" * 300]),
    st.sampled_from(["", ".", "..", "%", "~", "#", " a", "a."]),
    st.sampled_from(["1", "1.png", "crops.csv", "crops.c\u017fv", "a.PNG"]),
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=6),
)
KEYS = st.builds(
    lambda prefix, parts, ending: prefix + "/".join(parts) + ending,
    st.sampled_from(["s3://in/", "s3://in/x.tar#", "s3://other/", "file:///in/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", ".jpg", ".JPG", ".png", ".tiff"]),
)


def chosen_names(keys: list[str]) -> dict[str, str]:
    """As `pipeline/export/rows.py` chooses in SQL."""
    folder = shared_folder(min(keys), max(keys))
    plain = {key: plain_name(key, folder) for key in keys}
    same = [folded(name) for name in plain.values()]
    return {
        key: with_digest(name, key) if same.count(folded(name)) > 1 or needs_digest(name) else name
        for key, name in plain.items()
    }


@given(st.lists(KEYS, min_size=1, max_size=12, unique=True))
@settings(max_examples=7 * settings.default.max_examples, deadline=None)
def test_no_two_keys_share_a_file_and_no_file_is_a_folder(keys):
    names = chosen_names(sorted(keys))
    for files in (
        [f"{name}.png" for name in names.values()],  # as label PNGs have them
        [*(f"{name}/1.png" for name in names.values()), "crops.csv", "left_out.csv"],  # as cut-outs
    ):
        files = [folded(file) for file in files]
        folders = {file[:n] for file in files for n in range(len(file)) if file[n] == "/"}
        assert len(set(files)) == len(files) and not folders & set(files)
    for name in names.values():
        for part in f"{name}.png".split("/"):
            assert part not in ("", ".", "..") and len(part.encode()) <= 200
            assert (not set(part) & set('\\:*?"<>|') and part.isprintable()) or not part.isascii()
            assert not part.startswith((" ", ".")) and not part.endswith((" ", "."))
            assert unicodedata.normalize("NFC", part)


def test_plain_keys_keep_their_names():
    keys = ["s3://in/photos/a/b.jpg", "s3://in/photos/a_b.jpg", "s3://in/photos/c.tar#d/e.jpeg"]
    assert list(chosen_names(keys).values()) == ["a/b", "a_b", "c.tar%23d/e"]
    assert list(chosen_names(["s3://in/x.tar#1.jpg", "s3://in/x.tar#2.jpg"]).values()) == ["1", "2"]
    assert list(chosen_names(["s3://in/only.jpg"]).values()) == ["only"]


def test_names_that_differ_only_by_extension_or_case_get_a_digest():
    names = chosen_names(["s3://in/a.jpg", "s3://in/a.png", "s3://in/b.jpg", "s3://in/B.jpg", "s3://in/c.jpg"])
    assert names["s3://in/c.jpg"] == "c"
    assert all(len(name) == len("a~") + 16 for key, name in names.items() if "/c" not in key)


@given(KEYS)
@settings(max_examples=3 * settings.default.max_examples, deadline=None)
def test_name_and_extension_are_the_name_of_the_file(key):
    """Of keys without characters that are escaped; `file_name` of COCO is put together from both."""
    folder = shared_folder(key, key)
    whole = plain_name(key, folder) + extension_of(key)
    assert "%" in whole or whole == key.removeprefix(folder)
