"""Pages of a listing: what botocore's parser makes of them is the reference."""

from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from botocore.handlers import decode_list_object_v2
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.filesystem import open_filesystem
from pipeline.store.s3_pages import ANSWER, PageObjects, ask_for_page, objects_of, parse_objects

SHAPE = ServiceModel(Loader().load_service_model("s3", "service-2")).operation_model("ListObjectsV2").output_shape
KEYS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="￾￿"), min_size=1, max_size=8
)
OBJECTS = st.lists(st.tuples(KEYS, st.sampled_from(['"a1-2"', "b"]), st.integers(0, 2**40)), max_size=5)


def page_of(objects, encoded, more="", quote="&quot;"):
    encode = (lambda key: quote_plus(key, safe="/")) if encoded else (lambda key: key)
    rows = "".join(
        f"<Contents><Key>{escape(encode(key))}</Key><LastModified>2026-11-29T01:02:03.000Z</LastModified>"
        f"<ETag>{escape(etag, {chr(34): quote})}</ETag><Size>{size}</Size><Owner><ID>x</ID></Owner></Contents>"
        for key, etag, size in objects
    )
    kind = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name>{kind}<IsTruncated>false</IsTruncated>{rows}{more}</ListBucketResult>"
    ).encode()


def parsed_by_botocore(body):
    answer = {"status_code": 200, "headers": {}, "body": body}
    page = create_parser("rest-xml").parse(answer, SHAPE)
    decode_list_object_v2(page, {"encoding_type_auto_set": True})
    return objects_of(page)


@given(OBJECTS, st.booleans(), st.sampled_from(["&quot;", "&#34;", "&#x22;", '"']))
def test_a_page_is_what_botocore_makes_of_it(objects, encoded, quote):
    body = page_of(objects, encoded, quote=quote)
    expected = PageObjects.of([o[0] for o in objects], [o[1].strip('"') for o in objects], [o[2] for o in objects])
    assert parsed_by_botocore(body) == expected
    assert parse_objects(body) == (expected if objects else None)


@pytest.mark.parametrize(
    "body",
    [
        page_of([("a", "e", 1)], False).replace(b"<Key>a</Key>", b"<Key><![CDATA[a]]></Key>"),
        page_of([("a", "e", 1)], False).replace(b"<ETag>e</ETag>", b""),
        page_of([("a", "e", 1)], False).replace(b"<Size>1</Size>", b"<Size>many</Size>"),
        page_of([("a", "e", 1), ("b", "e", 1)], False).replace(
            b"</Contents><Contents>", b"</Contents><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes><Contents>"
        ),
        page_of([("a", "e", 1)], False).replace(b"Contents>", b"s3:Contents>"),
        page_of([("a", "e", 1)], False).replace(b"<Key>a</Key>", b"<Key>a</Key><Key>b</Key>"),
        page_of([("a", "e", 1)], False).replace(b"<Key>a</Key>", b"<Key><b>a</b></Key>"),
        page_of([("a", "e", 1)], False).replace(b"<Key>a", b"<!-- <Key>b</Key> --><Key>a"),
        page_of([("a\nb", "e", 1)], False),
        page_of([("a\rb", "e", 1)], False),
        page_of([("a", "e", 1)], False).replace(b"<Key>a</Key>", b"<Key>\xff</Key>"),
        page_of([("a", "e", 1)], False)[:-60],
        b"",
    ],
)
def test_what_is_written_in_another_way_is_left_to_botocore(body):
    assert parse_objects(body) is None


def test_a_real_bucket_is_read_fast_with_its_folders(s3):
    uri = s3.bucket("pages")
    keys = ["a b", "a&<b>", "é/x", "p%20q", "r+s", "q\"u'o", "sub/1", "sub/2"]
    for key in keys:
        s3.client.put_object(Bucket="pages", Key=key, Body=key.encode())
    filesystem, _ = open_filesystem(uri)
    bodies = []
    filesystem.s3.meta.events.register_first(
        "before-parse.s3.*", lambda response_dict, **_: bodies.append(response_dict["body"]), unique_id="test"
    )
    page = ask_for_page(filesystem, Bucket="pages", Prefix="")
    expected = s3.client.list_objects_v2(Bucket="pages")["Contents"]
    assert ANSWER in page and "Contents" not in page
    assert b"</ListBucketResult>" in bodies[0] and b"<Contents>" not in bodies[0]  # no handler of botocore sees them
    assert objects_of(page) == objects_of({"Contents": expected})
    assert sorted(objects_of(page).keys.to_pylist()) == sorted(keys)
    assert ANSWER not in filesystem.call_s3("list_objects_v2", Bucket="pages", Prefix="")
    assert len(filesystem.find("pages")) == len(keys)
    top = ask_for_page(filesystem, Bucket="pages", Prefix="", Delimiter="/")
    assert [one["Prefix"] for one in top["CommonPrefixes"]] == ["sub/", "é/"]
