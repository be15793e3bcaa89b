"""Names and values of a YAML file, as they are spelled."""

import pytest

from pipeline.text.plain_yaml import read_plain_yaml


def test_values_are_as_they_are_spelled(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1:8\nb: 2026-11-30\nc: true\nd: null\ne: {f: 1.50}\n")
    assert read_plain_yaml(tmp_path / "a.yaml") == {
        "a": "1:8",
        "b": "2026-11-30",
        "c": True,
        "d": None,
        "e": {"f": "1.50"},
    }
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_plain_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "a is there twice"),
        ("a: &x 1\nb: *x", r"write out the value of \*x"),
        ("[1, 2]", "names and values, not a list"),
        ("false", "names and values, not a bool"),
        ("a: [" * 5000, "values within values"),
        ("#" * 70_000, "more than 65,536 bytes"),
        ("a: {", "expected"),
    ],
)
def test_anything_else_is_one_line(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        read_plain_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(refused.value)
