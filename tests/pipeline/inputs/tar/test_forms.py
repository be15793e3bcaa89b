"""Tars that are damaged, odd or in a form that people really have: what is an image, and which row says why not."""

import bz2
import gzip
import lzma
import shutil
import subprocess
import tarfile

import pytest

from pipeline.config import Settings
from pipeline.inputs.sources import input_spec
from tests.support.listed import list_images
from tests.support.tars import FORMATS, by_name, member, read_all, tar_of

IMAGES = {f"{number:02d}.jpg": bytes([number]) * 700 for number in range(10)}
TAR = tar_of(member(*image) for image in IMAGES.items())  # a header at each 1536 bytes, the end at byte 15360


def read(tmp_path, data: bytes) -> dict[str, bytes | str]:
    (tmp_path / "a.tar").write_bytes(data)
    return by_name(tmp_path / "a.tar")


def first(number: int) -> dict[str, bytes | str]:
    return dict(list(IMAGES.items())[:number])


def test_a_tar_that_ends_inside_of_an_image_gives_the_images_before_and_a_row_of_that_image(tmp_path):
    found = read(tmp_path, TAR[: 5 * 1536 + 512 + 100])
    assert found == {
        **first(5),
        "05.jpg": "damaged_container: the tar ends at byte 8292, 600 bytes before the image does",
    }


def test_a_tar_that_ends_inside_of_a_header_gives_the_images_before_and_a_row_of_the_tar(tmp_path):
    found = read(tmp_path, TAR[: 5 * 1536 + 100])
    said = "damaged_container: the header at byte 7680 is damaged (truncated header); what follows is not read"
    assert found == {**first(5), "": said}


def test_a_tar_without_an_end_may_be_cut_off_which_is_said(tmp_path, caplog):
    assert read(tmp_path, TAR[: 5 * 1536]) == first(5)
    assert f"1 tars lack the end of a tar: they may be cut off, for example 'file://{tmp_path}/a.tar'" in caplog.text
    caplog.clear()
    assert read(tmp_path, TAR) == IMAGES and not caplog.text


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_that_ends_at_any_byte_loses_no_image_whose_header_is_there(tmp_path, form):
    long = "d" * 90
    tar = tar_of([member(f"{long}/{number}{long}.jpg", bytes([number]) * 900) for number in range(3)], form)
    whole = read(tmp_path, tar)
    assert [type(value) for value in whole.values()] == [bytes] * 3
    for end in range(1, len(tar) - 10240, 151):
        found = read(tmp_path, tar[:end])
        rows = {name: value for name, value in found.items() if isinstance(value, str)}
        assert {name: value for name, value in found.items() if name not in rows}.items() <= whole.items()
        assert len(rows) <= 1 and all(value.startswith("damaged_container: ") for value in rows.values())
        assert list(found) == [*list(whole)[: len(found) - ("" in rows)], *([""] if "" in rows else [])]


def test_a_damaged_header_in_the_middle_gives_the_images_before_and_a_row_of_the_tar(tmp_path):
    data = bytearray(TAR)
    data[3 * 1536 + 150] ^= 1
    said = "damaged_container: the header at byte 4608 is damaged (bad checksum); what follows is not read"
    assert read(tmp_path, bytes(data)) == {**first(3), "": said}


def test_a_header_that_says_more_than_headers_hold_is_not_read(tmp_path):
    name = member("././@LongLink", b"x" * 2**20 + b".jpg\0", type=tarfile.GNUTYPE_LONGNAME)
    found = read(tmp_path, tar_of([member("a.jpg", b"1"), name, member("b.jpg", b"2")], tarfile.GNU_FORMAT))
    said = "the header at byte 1024 is damaged (it asks for more bytes than headers have); what follows is not read"
    assert found == {"a.jpg": b"1", "": f"damaged_container: {said}"}


def test_a_size_below_zero_does_not_lead_backwards(tmp_path):
    """Such a tar kept old versions of tarfile in a loop."""
    data = bytearray(TAR)
    data[1536 + 124 : 1536 + 136] = b"\xff" * 11 + b"\x00"
    data[1536 + 148 : 1536 + 156] = b" " * 8
    data[1536 + 148 : 1536 + 156] = b"%06o\0 " % sum(data[1536 : 1536 + 512])
    found = read(tmp_path, bytes(data))
    assert list(found) == ["00.jpg", ""] and "the header at byte 1536 is damaged (its size is below 0)" in found[""]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "damaged_container: the tar is empty, without a byte"),
        (b"not a tar" * 100, "damaged_container: it is no tar: "),
        (b"short", "damaged_container: it is no tar: truncated header"),
        (
            gzip.compress(TAR),
            "unsupported: the tar is compressed with gzip, so no image in it can be read alone; decom",
        ),
        (bz2.compress(TAR), "unsupported: the tar is compressed with bzip2"),
        (lzma.compress(TAR), "unsupported: the tar is compressed with xz"),
    ],
)
def test_what_is_no_tar_is_a_row_that_says_so(tmp_path, data, said):
    found = read(tmp_path, data)
    assert list(found) == [""] and found[""].startswith(said)


@pytest.mark.parametrize("name", ["a.tar.gz", "A.TGZ", "b.tar.xz", "c.tar.zst"])
def test_a_compressed_tar_is_known_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(TAR))
    assert read_all(str(tmp_path))[f"file://{tmp_path}/{name}"].startswith("unsupported: the tar is compressed")


def test_a_tar_without_members_has_no_rows_and_is_counted(tmp_path, caplog):
    assert read(tmp_path, tar_of([])) == {}
    assert "1 tars hold no images" in caplog.text


def test_tars_in_one_file_one_behind_the_other_are_read_to_the_last(tmp_path, caplog):
    """`cat a.tar b.tar`: tarfile and GNU tar stop at the end of the first."""
    other = tar_of([member("z.jpg", b"z"), member("00.jpg", b"another")])
    assert read(tmp_path, TAR + other) == {**IMAGES, "z.jpg": b"z", "00.jpg#2": b"another"}
    caplog.clear()
    assert read(tmp_path, TAR + bytes(2**20) + other) == IMAGES  # more zeros than a tar ends with
    assert "1 tars are followed by something that is no tar and is not read" in caplog.text


def test_what_follows_the_end_of_a_tar_and_is_no_tar_is_not_read_and_is_said(tmp_path, caplog):
    assert read(tmp_path, TAR + b"\1garbage" * 1000) == IMAGES
    assert "1 tars are followed by something that is no tar" in caplog.text


def test_other_members_are_no_images_and_are_counted(tmp_path, caplog):
    inner = tar_of([member("inner.jpg", b"1")])
    found = read(
        tmp_path,
        tar_of(
            [
                member("folder.jpg", type=tarfile.DIRTYPE),
                member("a.jpg", b"1"),
                member("a.json", b"{}"),
                member("a.cls", b"7"),
                member("inner.tar", inner),
                member("to a.jpg", type=tarfile.SYMTYPE, linkname="a.jpg"),
                member("__MACOSX/._a.jpg", b"3"),
                member("./._a.jpg", b"3"),
                member("device.png", type=tarfile.BLKTYPE),
            ]
        ),
    )
    assert found == {"a.jpg": b"1"}
    assert "3 names are left out, because they lie in tars and do not end as names of images do" in caplog.text
    assert f"for example 'file://{tmp_path}/a.tar#a.json'" in caplog.text
    assert "2 names are left out, because they lie in tars and were left by programs" in caplog.text
    assert "2 names are left out, because they are symbolic links or devices in tars" in caplog.text


def test_names_are_names_and_never_paths(tmp_path):
    names = ["../../x.jpg", "/etc/x.jpg", "./x.jpg", "x.jpg", "a//x.jpg", "C:\\x.jpg", "a#b.jpg", "a?b %20*.jpg"]
    assert read(tmp_path, tar_of(member(name, name.encode()) for name in names)) == {n: n.encode() for n in names}


def test_of_images_with_one_name_none_is_lost(tmp_path, caplog):
    names = ["a.jpg", "a.jpg", "b.jpg", "a.jpg#2.jpg", "a.jpg", "a.jpg#2.jpg", "a.jpg#2"]
    found = read(tmp_path, tar_of(member(name, bytes([number])) for number, name in enumerate(names)))
    keys = ["a.jpg", "a.jpg#2", "b.jpg", "a.jpg#2.jpg", "a.jpg#3", "a.jpg#2.jpg#2"]  # the last member is no image
    assert found == {key: bytes([number]) for number, key in enumerate(keys)}
    assert "3 images have the name of an image before them in their tar" in caplog.text


@pytest.mark.parametrize("form", FORMATS)
def test_a_name_that_is_not_utf8_shows_its_bytes(tmp_path, form, caplog):
    found = read(tmp_path, tar_of([member("K\udcf6ln.jpg", b"1"), member("K\\xf6ln.jpg", b"2")], form))
    assert found == {"K\\xf6ln.jpg": b"1", "K\\xf6ln.jpg#2": b"2"}
    assert "1 images in tars have names that are not UTF-8" in caplog.text


def test_a_hard_link_is_the_image_that_it_names(tmp_path):
    link = {"type": tarfile.LNKTYPE}
    found = read(
        tmp_path,
        tar_of(
            [
                member("a.jpg", b"first"),
                member("raw", b"raw bytes"),
                member("b.jpg", linkname="./a.jpg", **link),
                member("c.jpg", linkname="b.jpg", **link),
                member("d.jpg", linkname="raw", **link),
                member("a.jpg", b"second"),
                member("e.jpg", linkname="a.jpg", **link),
                member("f.jpg", linkname="g.jpg", **link),
                member("g.jpg", b"later"),
                member("a.txt", linkname="a.jpg", **link),
            ]
        ),
    )
    assert found == {
        "a.jpg": b"first",
        "b.jpg": b"first",
        "c.jpg": b"first",
        "d.jpg": b"raw bytes",
        "a.jpg#2": b"second",
        "e.jpg": b"second",
        "f.jpg": "damaged_container: it is a hard link to 'g.jpg', which is not before it in the tar",
        "g.jpg": b"later",
    }


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_file_is_a_row_and_the_images_around_it_are_read(tmp_path, form):
    """Made by GNU tar: tarfile writes no sparse files."""
    if (
        shutil.which("tar") is None
        or b"GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True).stdout
    ):
        pytest.skip("needs GNU tar")
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    with (tmp_path / "b.jpg").open("wb") as file:
        for place in range(30):  # more pieces than a header holds
            file.seek(place * 2**20)
            file.write(b"data")
        file.truncate(40 * 2**20)
    command = ["tar", "--sparse", f"--format={form}", "-cf", "a.tar", "a.jpg", "b.jpg", "c.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if (tmp_path / "a.tar").stat().st_size > 20 * 2**20:
        pytest.skip("this file system has no holes")
    assert by_name(tmp_path / "a.tar") == {
        "a.jpg": b"a.jpg",
        "b.jpg": "unsupported: it is a sparse file; make the tar without the option --sparse",
        "c.jpg": b"c.jpg",
    }


def test_a_size_that_only_the_pax_header_says_is_read(tmp_path):
    info, data = member("a.jpg", b"bytes", pax_headers={"size": "5"})
    tar = bytearray(tar_of([(info, data), member("b.jpg", b"more")]))
    header = tar.index(b"a.jpg")  # of the file: the PAX header before it holds only the size
    header = tar.index(b"a.jpg\0", header + 1) if tar[header + 156 : header + 157] != b"0" else header
    tar[header + 124 : header + 136] = b"0" * 11 + b"\0"
    tar[header + 148 : header + 156] = b" " * 8
    tar[header + 148 : header + 156] = b"%06o\0 " % sum(tar[header : header + 512])
    assert read(tmp_path, bytes(tar)) == {"a.jpg": b"bytes", "b.jpg": b"more"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"exclude": ("*.seg.png",)}, ["a.jpg", "sub/c.jpg"]),
        ({"include": ("**#sub/**",)}, ["sub/c.jpg"]),
        ({"include": ("x/a.tar#*.jpg",)}, ["a.jpg"]),
        ({"exclude": ("x/**",)}, []),
    ],
)
def test_patterns_take_images_of_a_tar_by_their_keys(tmp_path, flags, expected):
    (tmp_path / "x").mkdir()
    names = ["a.jpg", "b.seg.png", "sub/c.jpg"]
    cut = tar_of(member(name, b"12") for name in names)
    (tmp_path / "x" / "a.tar").write_bytes(cut)
    spec = input_spec(Settings(str(tmp_path), str(tmp_path / "out"), **flags))
    keys = [image.image_key for image in list_images(str(tmp_path), include=spec.include, exclude=spec.exclude)]
    assert keys == [f"file://{tmp_path}/x/a.tar#{name}" for name in expected]


def test_a_damaged_image_that_is_excluded_has_no_row(tmp_path):
    (tmp_path / "a.tar").write_bytes(TAR[: 5 * 1536 + 700])
    keys = [image.image_key for image in list_images(str(tmp_path), exclude=("*5.jpg",))]
    assert [key.rpartition("#")[2] for key in keys] == list(first(5))


def test_an_input_that_is_one_tar_may_have_any_name_with_the_format(tmp_path):
    (tmp_path / "shard").write_bytes(TAR)
    keys = [image.image_key for image in list_images(str(tmp_path / "shard"), format="tar")]
    assert keys == [f"file://{tmp_path}/shard#{name}" for name in IMAGES]
