"""Every retry policy stands in one table, does what its numbers say, and nowhere else are there such numbers."""

import ast

import pytest
from tenacity import retry_if_exception_type, retry_if_not_exception_type

from pipeline.store import retries
from pipeline.store.retries import RetryPolicy, last_error
from tests.support.places import ROOT

POLICIES = {name: policy for name, policy in vars(retries).items() if isinstance(policy, RetryPolicy)}


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that policies make, as a list that grows; nobody waits."""
    made = []
    monkeypatch.setattr("pipeline.store.retries.sleep", made.append)
    return made


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_makes_its_attempts_and_its_pauses_and_raises_the_last_error(name, pauses):
    policy, calls = POLICIES[name], []

    def fail():
        calls.append(1)
        raise OSError(f"attempt {len(calls)}")

    with pytest.raises(OSError, match=f"^attempt {policy.attempts}$"):
        policy.retrying(retry_if_exception_type(OSError))(fail)
    assert len(calls) == policy.attempts and len(pauses) == policy.attempts - 1
    longest = [min(policy.longest_pause, policy.first_pause * 2**n) for n in range(len(pauses))]
    assert all(0 <= pause <= most for pause, most in zip(pauses, longest, strict=True))


def test_what_is_not_to_be_repeated_is_raised_at_once(pauses):
    def fail():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        retries.OBJECT.retrying(retry_if_not_exception_type(FileNotFoundError))(fail)
    assert not pauses


def test_no_attempt_begins_after_the_time_to_give_up(pauses):
    calls = []

    def fail():
        calls.append(1)
        raise OSError("slow")

    with pytest.raises(OSError, match="slow"):
        retries.IMAGE.retrying(retry_if_exception_type(OSError), give_up_after=0.0)(fail)
    assert len(calls) == 1


def test_the_error_of_an_attempt_is_there_for_the_log(pauses):
    logged = []

    def fail():
        raise OSError("cut")

    log = retries.TABLE_READ.retrying(retry_if_exception_type(OSError), before_sleep=lambda s: logged.append(s))
    with pytest.raises(OSError, match="cut"):
        log(fail)
    assert [str(last_error(state)) for state in logged] == ["cut"] * (retries.TABLE_READ.attempts - 1)


def policies_elsewhere(source: str) -> set[str]:
    """Names that set numbers of a retry policy: of tenacity what stops and waits, of botocore the client's options."""
    tree = ast.parse(source)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "tenacity"
        for alias in node.names
    }
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in imported if name.startswith(("stop_", "wait_"))} | (strings & {"total_max_attempts"})


def test_no_other_file_sets_numbers_of_a_retry_policy():
    files = [file for package in ("pipeline", "m2f_core", "jobs") for file in (ROOT / package).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix() for file in files if policies_elsewhere(file.read_text())}
    assert found == {"pipeline/store/retries.py"}
