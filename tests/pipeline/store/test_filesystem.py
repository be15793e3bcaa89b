"""What a store raises, in the words of a run."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

import aiohttp
import pytest
import s3fs
from botocore.exceptions import NoCredentialsError

from pipeline.errors import BrokenRunError, RunError, StoreUnavailableError
from pipeline.store import filesystem as filesystem_module
from pipeline.store.filesystem import open_filesystem, put_object, store_errors_as
from pipeline.store.objects import read_once

WORDS = {"denied": "--input x may not be listed", "missing": "--input x does not exist"}


@pytest.mark.parametrize(
    ("raised", "words", "kind", "said"),
    [
        (OSError("disk\n  full"), {}, RunError, "--input x cannot be listed: disk full"),
        (NoCredentialsError(), {}, BrokenRunError, "--input x cannot be listed: Unable to locate credentials"),
        (PermissionError("no"), {}, RunError, "--input x cannot be listed: no"),
        (PermissionError("no"), WORDS, RunError, "--input x may not be listed: no"),
        (FileNotFoundError("x"), {}, StoreUnavailableError, "--input x cannot be listed: x"),
        (FileNotFoundError("x"), WORDS, RunError, "--input x does not exist"),
        (KeyError("parts"), {"also": (KeyError,)}, RunError, "--input x cannot be listed: 'parts'"),
    ],
)
def test_an_error_of_a_store_is_one_line_of_the_kind_that_is_asked_for(raised, words, kind, said):
    with pytest.raises(kind) as error, store_errors_as(kind, "--input x cannot be listed", **words):
        raise raised
    assert type(error.value) is kind and str(error.value) == said


def test_what_will_not_come_by_trying_again_is_no_store_that_is_away():
    with pytest.raises(RunError) as error, store_errors_as(StoreUnavailableError, "away", missing="gone"):
        raise FileNotFoundError("x")
    assert type(error.value) is RunError and str(error.value) == "gone"


@pytest.mark.parametrize("raised", [RunError("ours"), KeyError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass_as_they_are(raised):
    with pytest.raises(type(raised)) as error, store_errors_as(BrokenRunError, "--output x cannot be written"):
        raise raised
    assert error.value is raised


def test_errors_of_other_clients_are_those_of_a_store():
    with pytest.raises(RunError, match="cannot be listed: no route"), store_errors_as(RunError, "cannot be listed"):
        raise aiohttp.ClientError("no route")


# Pages that name what to read next, files inside of files, other machines, nothing at all.
NO_STORES = (
    *("http://169.254.169.254/latest/meta-data/", "https://store.example/photos", "ftp://host/x", "sftp://host/x"),
    *("zip://a.zip", "reference://x", "simplecache::http://169.254.169.254/x", "s3::http://x/y", "data://x"),
    *("github://owner/x", "local:///tmp", "S3://bucket/x", "nothing://x"),
)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hdfs://host:8020/x", "hdfs:// with host, port in the URI is not supported"),
        *((uri, "is no store that this program uses; give a path or one of file://, s3://") for uri in NO_STORES),
        ("s3:/bucket/x", "did you mean s3://bucket/x"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_one_line(uri, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=said) as error:
        open_filesystem(uri)
    assert "\n" not in str(error.value) and uri in str(error.value)


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with the redirect of its server, or with an object; counts the requests."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.close_connection = True
        self.send_response(self.server.code)
        self.send_header("Location", self.server.location)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_GET  # noqa: N815

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def answering(code: int, location: str = "") -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.code, server.location, server.asked = code, location, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("what", [read_once, lambda f, p: put_object(f, p, b"1"), lambda f, p: f.ls(p)])
def test_a_redirect_of_a_store_to_another_host_is_an_error(code, what, fresh_s3, monkeypatch):
    """Else whoever answers for the store has the job fetch what only its machine reaches, such as metadata."""
    monkeypatch.setitem(filesystem_module._S3_OPTIONS["config_kwargs"]["retries"], "total_max_attempts", 1)
    with answering(200) as metadata, answering(code, f"http://127.0.0.1:{metadata.server_port}/latest") as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        filesystem, path = open_filesystem("s3://bucket/x")
        with pytest.raises(OSError):
            what(filesystem, path)
        assert store.asked and not metadata.asked


def test_passwords_of_endpoints_and_proxies_stay_out_of_messages(fresh_s3, monkeypatch):
    """botocore repeats the URL of both."""
    monkeypatch.setitem(filesystem_module._S3_OPTIONS["config_kwargs"]["retries"], "total_max_attempts", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_ENDPOINT_URL", "HTTP_PROXY"):
        with monkeypatch.context() as context:
            context.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            context.setenv(name, "http://user:PASSWORD@127.0.0.1:9")
            s3fs.S3FileSystem.clear_instance_cache()
            filesystem, path = open_filesystem("s3://bucket/x")
            with pytest.raises(RunError) as error, store_errors_as(RunError, "cannot be read"):
                read_once(filesystem, path)
        assert "PASSWORD" not in str(error.value)
    assert "http://***@127.0.0.1:9" in str(error.value), "the proxy is named"
