"""The requests that are sent to S3 for images: how many, signed by whom, paid by whom."""

import pytest

from pipeline.input_spec import OWN_ACCESS, Access, InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.lists.object_stream import open_object
from pipeline.inputs.reads import ImageReader, ListedImage
from pipeline.store.filesystem import open_filesystem
from tests.support.inventories import inventory, row
from tests.support.listed import list_images
from tests.support.requests_seen import requests_seen

pytestmark = pytest.mark.usefixtures("fresh_s3")

BUCKET, NUMBER = "m2f-requests", 200


@pytest.fixture(scope="module")
def bucket(s3) -> str:
    uri = s3.bucket(BUCKET)
    rows = []
    for number in range(NUMBER):
        key, data = f"images/{number:03d}.jpg", bytes([number])
        etag = s3.client.put_object(Bucket=BUCKET, Key=key, Body=data)["ETag"].strip('"')
        rows.append(row(BUCKET, key, len(data), etag))
    for name, content in inventory(BUCKET, [rows], "CSV").items():
        s3.client.put_object(Bucket=BUCKET, Key=f"inventories/{name}", Body=content)
    lines = "".join(f"s3://{BUCKET}/{one['Key']}\n" for one in rows)
    s3.client.put_object(Bucket=BUCKET, Key="lists/m.txt", Body=lines.encode())
    return uri


@pytest.mark.parametrize(
    ("input_format", "path", "of_listing"),
    [("auto", "images", 1), ("manifest", "lists/m.txt", 5), ("inventory", "inventories", 6)],
)
def test_an_image_is_one_request_and_a_list_a_few(bucket, input_format, path, of_listing):
    """A manifest: a listing below its name, which finds nothing, three HEADs that find the object, and a GET. An
    inventory: its dates, the checksum twice, manifest.json, HEAD and GET of the data file.
    """
    with requests_seen() as listing:
        images = list(list_images(f"{bucket}/{path}", format=input_format))
    with requests_seen() as reading:
        read = FetchImages(InputSpec.of(bucket)).fetch_all(images)
    assert [one.data for one in read] == [bytes([number]) for number in range(NUMBER)]
    print(f"{input_format}: {(len(listing) + len(reading)) / NUMBER:.3f} requests for each of {NUMBER} images")
    assert len(reading) == NUMBER and len(listing) == of_listing, [(one.method, one.url) for one in listing]


@pytest.mark.parametrize(
    ("access", "is_signed", "payer"),
    [
        (OWN_ACCESS, True, None),
        (Access(anonymous=True), False, None),
        (Access(requester_pays=True), True, "requester"),
    ],
)
def test_every_kind_of_request_is_signed_and_paid_as_the_flags_say(bucket, access, is_signed, payer):
    """The server refuses strangers, so requests without a signature fail; what counts here is what was sent."""
    image = ListedImage(f"{bucket}/images/000.jpg", "", None)
    spec = InputSpec(InputSpec.of(bucket).sources, access=access)
    filesystem, path = open_filesystem(f"{bucket}/images/000.jpg", access)
    with requests_seen(access) as seen:
        for ask in (
            lambda: list(list_images(f"{bucket}/images", access=access)),
            lambda: ImageReader(spec).read([image], 1, 600.0),
            lambda: filesystem.info(path),
            lambda: open_object(filesystem, path).read(),
        ):
            if is_signed:
                ask()
            else:
                with pytest.raises(Exception, match=r"(?i)denied|forbidden|permission"):
                    ask()
    kinds = {(one.method, "list-type=2" in one.url, "range" in one.headers) for one in seen}
    assert kinds >= {("GET", True, False), ("GET", False, False), ("HEAD", False, False)}
    assert not is_signed or ("GET", False, True) in kinds
    assert {"authorization" in one.headers for one in seen} == {is_signed}
    assert {one.headers.get("x-amz-request-payer") for one in seen} == {payer}
