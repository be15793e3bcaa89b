"""What a store raises, in the words of a run."""

import aiohttp
import pytest
from botocore.exceptions import NoCredentialsError

from pipeline.errors import BrokenRunError, RunError, StoreUnavailableError
from pipeline.store.filesystem import open_filesystem, store_errors_as

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


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://host/x", "ftp:// with host in the URI is not supported"),
        ("zip://a.zip", "a.zip|No such file|directory"),
        ("nothing://x", "Protocol not known: nothing"),
        ("s3:/bucket/x", "did you mean s3://bucket/x"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_one_line(uri, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=said) as error:
        open_filesystem(uri)
    assert "\n" not in str(error.value) and uri in str(error.value)
