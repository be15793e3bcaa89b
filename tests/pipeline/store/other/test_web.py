"""Objects of web servers: what is read of them, and what is not, because the server or a list wants more than bytes."""

import socket
import threading
import urllib.request

import pytest

from pipeline.errors import RunError
from pipeline.store.filesystem import WEB_SCHEMES, facts_of, open_filesystem, uri_of
from pipeline.store.objects import DamagedError, TooManyBytesError
from pipeline.store.other import web
from pipeline.store.other.addresses import RefusedAddressError, check_host, checked_socket
from pipeline.store.other.answer import Answer, NoPartsError, PassingError
from pipeline.store.other.opening import open_input
from tests.support.other_stores import ask
from tests.support.web_server import LAST_MODIFIED, web_server

DATA = bytes(range(256)) * 40
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def server():
    with web_server() as running:
        yield running


# --- what a server says of an object ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "etag"),
    [
        ({"etag": '"abc"'}, "abc"),
        ({"etag": 'W/"abc"', "last_modified": LAST_MODIFIED}, "abc"),
        ({"etag": None, "last_modified": LAST_MODIFIED}, f"{1795910400:x}-{len(DATA):x}"),
        ({"etag": None, "last_modified": "yesterday"}, ""),
        ({"etag": None}, ""),
        ({"etag": '"abc"', "has_head": False}, "abc"),
    ],
)
def test_the_version_of_an_object_is_the_same_by_listing_and_by_reading(fields, etag, server):
    uri = server.add("/a.jpg", DATA, **fields)
    filesystem, path = open_input(uri)
    assert uri_of(filesystem, path) == uri
    assert facts_of(filesystem, path) == (etag, len(DATA))
    assert ask(uri) == Answer(etag, len(DATA), DATA)
    assert ask(uri, part=(5, 7)) == Answer(etag, len(DATA), DATA[5:12])


def test_an_object_whose_size_the_server_does_not_say_is_read_up_to_its_end(server):
    uri = server.add("/a", DATA, says_size=False, etag=None, last_modified=LAST_MODIFIED)
    filesystem, path = open_input(uri)
    assert filesystem.info(path)["size"] is None and filesystem.info(path)["etag"] == ""
    assert ask(uri) == Answer(f"{1795910400:x}-{len(DATA):x}", len(DATA), DATA)


@pytest.mark.parametrize("path", ["/a b.jpg", "/a%20b.jpg", "/%C3%BC.jpg", "/ü.jpg", "/100%.jpg"])
def test_a_url_is_sent_as_a_browser_sends_it(path, server):
    sent = {"/a b.jpg": "/a%20b.jpg", "/ü.jpg": "/%C3%BC.jpg", "/100%.jpg": "/100%25.jpg"}.get(path, path)
    server.add(sent, DATA)
    assert ask(server.uri(path)).data == DATA


def test_an_object_with_another_version_is_not_read(server):
    uri = server.add("/a", DATA, etag='"new"', waits_for=threading.Event())
    for part in (None, (0, 10)):
        assert ask(uri, etag="old", part=part) == Answer("new", len(DATA), b"")


def test_no_credentials_and_no_cookies_are_sent(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    uri = server.add("/a", DATA, headers={"Set-Cookie": "session=1"})
    ask(uri), ask(uri)
    assert len(server.headers_seen) == 2
    for headers in server.headers_seen:
        assert not {"authorization", "cookie"} & set(headers) and headers["accept-encoding"] == "identity"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_of_a_server_that_knows_no_ranges_is_cut_out_of_a_small_object(server, monkeypatch):
    uri = server.add("/a", DATA, has_ranges=False)
    assert ask(uri, part=(100, 50)).data == DATA[100:150]
    monkeypatch.setattr(web, "_MOST_SKIPPED_BYTES", 149)
    with pytest.raises(NoPartsError, match="sends no parts of objects"):
        ask(uri, part=(100, 50))


def test_a_part_behind_the_end_of_an_object_has_no_bytes(server):
    uri = server.add("/a", DATA, etag='"x"')
    assert ask(uri, part=(len(DATA), 5)) == Answer("x", len(DATA), b"")
    assert ask(uri, part=(len(DATA) - 2, 5)).data == DATA[-2:]


def test_a_server_that_sends_another_part_is_noticed(server):
    uri = server.add("/a", DATA, headers={"Content-Range": f"bytes 7-16/{len(DATA)}"})
    with pytest.raises(DamagedError, match="was asked for bytes from 3 and sent others"):
        ask(uri, part=(3, 10))


# --- bodies that do not end as they should ----------------------------------------------------------------------------


@pytest.mark.parametrize("says_size", [True, False])
def test_a_body_larger_than_the_bound_is_not_read_to_its_end(says_size, server):
    """The second half never comes: a reader that wanted it would wait."""
    uri = server.add("/a", DATA, says_size=says_size, waits_for=threading.Event())
    with pytest.raises(TooManyBytesError):
        ask(uri, most_bytes=1000)


def test_a_part_larger_than_asked_for_is_not_read_to_its_end(server):
    longer = {"Content-Range": f"bytes 0-9/{len(DATA)}"}
    uri = server.add("/a", DATA, status=206, has_ranges=False, headers=longer, waits_for=threading.Event())
    with pytest.raises(TooManyBytesError):
        ask(uri, part=(0, 10))


def test_a_part_that_nobody_asked_for_is_no_whole_object(server):
    """Where a list says no size, nothing else tells that the rest is missing."""
    uri = server.add("/a", DATA[:100], status=206, headers={"Content-Range": f"bytes 0-99/{len(DATA)}"})
    with pytest.raises(DamagedError, match="asked for as a whole, and a part was sent"):
        ask(uri)


def test_a_body_that_is_cut_off_is_damaged(server):
    uri = server.add("/a", DATA, sent_bytes=100)
    with pytest.raises(DamagedError, match="ends early"):
        ask(uri)


def test_a_body_that_was_encoded_unasked_is_refused(server):
    """A few kilobytes of gzip may stand for gigabytes."""
    uri = server.add("/a", DATA, headers={"Content-Encoding": "gzip"})
    with pytest.raises(PermissionError, match="sent with the encoding gzip"):
        ask(uri)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (404, FileNotFoundError, None),
        (410, FileNotFoundError, None),
        (401, PermissionError, None),
        (403, PermissionError, None),
        (418, PermissionError, None),
        (429, PassingError, "throttled"),
        (503, PassingError, "throttled"),
        (408, PassingError, "timed_out"),
        (500, PassingError, "server_error"),
        (0, ConnectionError, None),  # the connection is closed
    ],
)
def test_an_answer_that_is_no_object_is_an_error_that_names_it(status, kind, cause, server):
    uri = server.add("/a", DATA, statuses=[status] * 2)  # aiohttp itself asks once more
    with pytest.raises(kind) as error:
        ask(uri)
    assert uri in str(error.value) and (status == 0 or str(status) in str(error.value))
    assert getattr(error.value, "retry_cause", None) == cause


def test_what_an_object_is_is_asked_again_after_errors_that_may_pass(server):
    uri = server.add("/a", DATA, statuses=[503, 0, 0, 500])
    filesystem, path = open_input(uri)
    assert facts_of(filesystem, path)[1] == len(DATA)
    server.objects["/a"].statuses = [404, 200]
    assert not filesystem.exists(path)


# --- redirects and addresses ------------------------------------------------------------------------------------------


def test_redirects_are_followed_on_the_same_server_and_end(server):
    server.add("/there/b", DATA)
    assert ask(server.add("/a", redirect="/there/b")).data == DATA
    assert ask(server.add("/c", redirect=server.uri("/a"))).data == DATA
    with pytest.raises(PermissionError, match="redirects more than 5 times"):
        ask(server.add("/loop", redirect="/loop"))


@pytest.mark.parametrize(
    "location",
    ["{other}/secret", "http://169.254.169.254/latest", "https://127.0.0.1/x", "//host/x", "file:///x", "http://["],
)
def test_a_redirect_to_another_server_is_an_error(location, server):
    with web_server() as other:
        other.add("/secret", DATA)
        uri = server.add("/a", redirect=location.format(other=other.uri("")))
        with pytest.raises(PermissionError, match="another server; name the object by its own address"):
            ask(uri)
        assert not other.asked


REFUSED = (
    *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200"),
    *("168.63.129.16", "0.0.0.0", "::", "224.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    *("2002:a9fe:a9fe::1", "metadata.google.internal", "METADATA.google.internal."),
)


@pytest.mark.parametrize("host", REFUSED)
def test_no_object_is_read_from_the_metadata_of_a_machine(host):
    with pytest.raises(RefusedAddressError, match="no object is read from there"):
        check_host(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "93.184.216.34", "::1", "2606:4700::1111", "example.com"])
def test_other_addresses_pass(host):
    assert check_host(host) is None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with checked_socket((family, socket.SOCK_STREAM, 6, "", (host, 80))) as made:
        assert made.family is family


def test_a_name_that_leads_to_the_metadata_is_refused_when_it_is_resolved(server, monkeypatch):
    """As with an entry of DNS that changes after somebody has looked at it."""
    real = socket.getaddrinfo

    def resolve(host, *rest, **more):
        return real("169.254.169.254" if host == "photos.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(RefusedAddressError, match=r"169\.254\.169\.254"):
        ask("http://photos.example/latest")


def test_the_proxy_of_the_environment_is_asked_with_its_password(server, monkeypatch):
    server.add("http://photos.example/a", DATA)
    proxy = f"http://me:word@127.0.0.1:{server.server_port}"
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": proxy, "https": proxy})
    assert ask("http://photos.example/a").data == DATA
    assert [headers["proxy-authorization"] for headers in server.headers_seen] == ["Basic bWU6d29yZA=="]
    with pytest.raises(RefusedAddressError):
        ask("http://169.254.169.254/a")
    with pytest.raises(OSError, match="photos"):  # the server knows no tunnels
        ask("https://photos.example/a")
    assert server.headers_seen[1]["proxy-authorization"] == "Basic bWU6d29yZA=="
    monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: host == "127.0.0.1")
    server.add("/b", DATA)
    assert ask(server.uri("/b")).data == DATA


# --- what can be opened -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["http://host", "https://host/", "https://host/folder/", "http:///x"])
def test_a_folder_of_the_web_is_refused(uri):
    with pytest.raises(RunError, match=r"names no object; https?:// has no folders"):
        open_input(uri)


@pytest.mark.parametrize("uri", ["https://me:SECRET0@host/x", "https://host/x?token=SECRET0", "https://host/x?w=1"])
def test_credentials_and_queries_are_refused(uri):
    with pytest.raises(RunError, match="holds credentials or a query") as error:
        open_input(uri)
    assert "SECRET0" not in str(error.value)


@pytest.mark.parametrize("scheme", WEB_SCHEMES)
def test_an_output_cannot_be_opened_on_the_web(scheme):
    with pytest.raises(RunError, match="is no store that this program uses"):
        open_filesystem(f"{scheme}://host/x")
