"""What people see holds no secret and nothing that a terminal obeys; what is no secret stays readable."""

import json
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import shown_text
from pipeline.errors import RunError
from pipeline.setting_fields import refuse_secrets
from pipeline.shown_text import holds_secret, masked, printable, printable_json, printable_lines, showing, shown

# The title of a terminal, a carriage return, bidirectional controls, a C1 control, zero width, a tag, a surrogate.
HOSTILE = "\x1b]0;owned\x07", "\r", "\n", "\u202e", "\u2066", "\x9b31m", "\u200b", "\U000e0041", "\udcff", "\u2028"

URIS_WITH_SECRETS = {
    "s3://KEY:SECRET@bucket/x": "s3://***@bucket/x",
    "s3://KEY:SEC/RET+x@bucket/x": "s3://***@bucket/x",
    "s3://SECRET@bucket/x": "s3://***@bucket/x",
    "s3://KEY:SECRET/bucket": "s3://***",
    "http://user:SECRET@host:80/x": "http://***@host:80/x",
    "http://user:SECRET@host?a=1": "http://***@host?***",
    "az://container/x?sv=1&sig=SECRET": "az://container/x?***",
    "https://a.blob.core.windows.net/c/x?sig=SECRET": "https://a.blob.core.windows.net/c/x?***",
    "gs://bucket/x?token=SECRET": "gs://bucket/x?***",
    "s3://b/x?X-Amz-Signature=SECRET&a=1": "s3://b/x?X-Amz-Signature=***&a=1",
    "s3://b/x?AWSAccessKeyId=SECRET": "s3://b/x?AWSAccessKeyId=***",
}
PLACES = (
    *("s3://bucket/a@b.jpg", "s3://bucket/q?v=1.png", "s3a://b/a:b/c@d", "file:///a/b:c@d?x", "out/a@b", "u:p@h"),
    *("s3://arn:aws:s3:us-west-2:123456789012:accesspoint/n/k@.jpg", "gs://bucket/a b", "hf://datasets/o/r@main/x"),
)


@pytest.mark.parametrize("uri", URIS_WITH_SECRETS)
def test_a_uri_with_a_secret_is_masked_and_refused(uri):
    text = f'--input {uri}: endpoint "{uri}" (one of {uri}'
    assert "SECRET" not in masked(text) and masked(uri) == URIS_WITH_SECRETS[uri]
    with pytest.raises(RunError, match=r"^--input \S+ holds credentials or a query; .*AWS_PROFILE") as error:
        refuse_secrets("--input", uri)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_without_a_secret_stays_as_it_is(place):
    assert masked(place) == place and not holds_secret(place)
    assert refuse_secrets("--input", place) is None


@pytest.mark.parametrize("text", ["--output s3://bucket: x", "http://127.0.0.1:9, y", 'URL: "http://[::1]:80/a@b"'])
def test_messages_stay_readable(text):
    assert masked(text) == text


def test_secrets_of_the_environment_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-key/of+all")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-session-token")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:the-password@proxy:3128")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token-file")
    text = "the-key/of+all, the-session-token; proxy user:the-password@proxy:3128, /var/run/token-file"
    assert masked(text) == "***, ***; proxy user:***@proxy:3128, /var/run/token-file"


def test_thousands_of_texts_are_shown_with_one_look_at_the_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "of-this-environment")
    looks = []
    search = shown_text._SECRET_VARIABLE.search
    monkeypatch.setattr(
        shown_text, "_SECRET_VARIABLE", SimpleNamespace(search=lambda name: looks.append(name) or search(name))
    )
    show = showing()
    texts = [f"{n} of-this-environment \x1b" for n in range(500)]
    assert [show(text) for text in texts] == [f"{n} *** \\x1b" for n in range(500)]
    assert looks.count("A_SECRET") == 1
    assert [show(text) for text in texts] == [shown(text) for text in texts]


@pytest.mark.parametrize("token", ["AKIA" + "A1" * 8, "hf_" + "aB3" * 10])
def test_known_forms_are_masked(token):
    assert masked(f"key {token}: denied") == "key ***: denied"
    assert masked("Authorization: Bearer abc.def-ghi") == "Authorization: Bearer ***"


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_what_a_terminal_obeys_is_an_escape(hostile):
    text = printable(f"a{hostile}b")
    assert text.encode().decode() == text and "\\" in text
    assert not any(unicodedata.category(c).startswith(("Cc", "Cf", "Cs", "Zl", "Zp")) for c in text)


def test_letters_of_all_languages_stay():
    text = "é/ü 日本 🐈 עברית\u00a0\u3000é"
    assert shown(text) == text
    assert printable_lines("a\nb\x1b\n") == "a\nb\\x1b\n"


@given(st.text())
def test_json_parses_to_the_same_text_and_nothing_else_than_text(text):
    line = printable_json(json.dumps({"key": text}, ensure_ascii=False))
    assert json.loads(line) == {"key": text}
    assert printable(line) == line


@given(st.text())
def test_shown_text_is_one_line_that_stays_as_it_is(text):
    once = shown(text)
    assert len(once.splitlines()) <= 1
    assert shown(once) == once
