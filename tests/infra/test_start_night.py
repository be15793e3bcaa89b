"""The program of the CronJob's pod against an API server of the test: it starts a night, and tells how it ended."""

import json
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.manifests import find, overlay, start_night

NAME = "m2f-night-20261130-0100"
JOB_NAME = "m2f-night-29933340"  # minutes since 1970, as Kubernetes names the Jobs of a CronJob
BASE = "/apis/ray.io/v1/namespaces/m2f"


class Server(ThreadingHTTPServer):
    """Holds objects by path. `states`: the status of the RayJob in one answer after the other, the last one for ever.

    `faults`: answers (code, message) that come before any other, for requests of a method.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {f"{BASE}/raycronjobs/m2f-night": find(overlay("gpu-spot"), "RayCronJob")}
        self.states: list[dict[str, str]] = []
        self.faults: dict[str, list[tuple[int, str]]] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, token


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)
        if found is not None and found["kind"] == "RayJob":
            states = self.server.states
            found = {**found, "status": states.pop(0) if len(states) > 1 else states[0]}
        self.answer(found)

    def do_POST(self) -> None:
        new = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{self.path}/{new['metadata']['name']}"
        if path in self.server.objects:
            self.answer(None, 409, "already exists")
        elif self.refused():
            return
        else:
            self.server.objects[path] = new
            self.answer(new, 201)

    def do_DELETE(self) -> None:
        self.answer(self.server.objects.pop(self.path, None))

    def refused(self) -> bool:
        if faults := self.server.faults.get(self.command):
            self.send(*faults.pop(0))
            return True
        return False

    def answer(self, obj: dict | None, code: int = 200, message: str = "not found") -> None:
        token = self.headers["Authorization"]
        self.server.requests.append((self.command, self.path.removeprefix(BASE), token))
        if self.command == "GET" and self.refused():
            return
        self.send(*((code if code != 200 else 404, message) if obj is None else (code, json.dumps(obj))))

    def send(self, code: int, text: str) -> None:
        body = (text if text.startswith("{") else json.dumps({"message": text})).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(start_night(), "POLL_SECONDS", 0.01)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def api(server, tmp_path):
    (tmp_path / "token").write_text("first")
    return start_night().Api(f"http://127.0.0.1:{server.server_port}", "m2f", tmp_path / "token", None)


def run(api, job_name: str = JOB_NAME) -> int:
    return start_night().wait(api, start_night().start(api, "m2f-night", job_name))


SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def test_it_creates_the_dated_ray_job_and_waits_for_its_end(server, api, capsys):
    server.states = [
        {},
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        {"jobDeploymentStatus": "Retrying"},
        SUCCEEDED,
    ]
    assert run(api) == 0
    created = server.objects[f"{BASE}/rayjobs/{NAME}"]
    assert created["spec"] == find(overlay("gpu-spot"), "RayCronJob")["spec"]["jobTemplate"]
    said = capsys.readouterr().err
    assert f"RayJob {NAME} is created" in said and f"RayJob {NAME}: Complete SUCCEEDED" in said


def test_a_pod_that_takes_the_place_of_a_lost_one_waits_for_the_same_ray_job(server, api, capsys):
    server.states = [SUCCEEDED]
    assert run(api) == 0 and run(api) == 0
    assert "is there already; waiting for it" in capsys.readouterr().err
    assert sum(path.startswith(f"{BASE}/rayjobs/") for path in server.objects) == 1


@pytest.mark.parametrize(
    "state",
    [
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"},
        {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"},
        {"jobDeploymentStatus": "ValidationFailed"},
    ],
)
def test_a_night_that_failed_fails_the_pod_and_stays_for_people_to_look_at(server, api, state):
    server.states = [state]
    assert run(api) == 1
    assert f"{BASE}/rayjobs/{NAME}" in server.objects


def test_a_night_that_was_stopped_by_hand_is_deleted_with_its_machines(server, api, capsys):
    server.states = [{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}]
    assert run(api) == 1
    assert f"{BASE}/rayjobs/{NAME}" not in server.objects and "was stopped by hand" in capsys.readouterr().err


def test_a_ray_job_that_somebody_deletes_ends_the_night(server, api):
    server.states = [{"jobDeploymentStatus": "Running"}]
    name = start_night().start(api, "m2f-night", JOB_NAME)
    del server.objects[f"{BASE}/rayjobs/{name}"]
    assert start_night().wait(api, name) == 1


def test_an_api_server_that_is_away_for_a_while_costs_nothing(server, api, capsys):
    server.states = [SUCCEEDED]
    server.faults = {"GET": [(503, "etcd has no leader"), (401, "the token is old")], "POST": [(500, "again")]}
    assert run(api) == 0
    assert "trying again: GET raycronjobs/m2f-night: 503 etcd has no leader" in capsys.readouterr().err


def test_an_answer_that_is_cut_off_is_asked_for_again(server, api, capsys, monkeypatch):
    whole = Handler.send
    cuts = [lambda text: (text[:20], 20), lambda text: (text[:20], 40)]  # no JSON; shorter than it says

    def cut(self: Handler, code: int, text: str) -> None:
        if not cuts or self.command != "GET":
            whole(self, code, text)
            return
        part, length = cuts.pop()(text)
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(part.encode())

    monkeypatch.setattr(Handler, "send", cut)
    server.states = [SUCCEEDED]
    assert run(api) == 0
    assert capsys.readouterr().err.count("the answer is cut off or is no JSON") == 2


def test_a_request_that_is_not_allowed_is_one_line(server, api):
    server.faults = {"POST": [(403, "rayjobs is forbidden")]}
    with pytest.raises(start_night().RefusedError, match="POST rayjobs: rayjobs is forbidden"):
        run(api)


def test_a_template_that_is_not_there_is_one_line(server, api):
    server.objects.clear()
    with pytest.raises(start_night().RefusedError, match="there is no RayCronJob m2f-night to copy"):
        run(api)


def test_a_renewed_token_is_used(server, api, tmp_path):
    server.states = [SUCCEEDED]
    name = start_night().start(api, "m2f-night", JOB_NAME)
    (tmp_path / "token").write_text("second")
    start_night().wait(api, name)
    assert {token for _, _, token in server.requests} == {"Bearer first", "Bearer second"}


def test_it_asks_for_no_more_than_its_role_allows(server, api):
    server.states = [{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}]
    run(api)
    verbs = {"GET": "get", "POST": "create", "DELETE": "delete"}
    asked = {(path.split("/")[1], verbs[method]) for method, path, _ in server.requests}
    rules = find(overlay("gpu-spot"), "Role")["rules"]
    assert asked == {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_the_program_in_its_pod_trusts_the_certificate_of_the_cluster_alone(server, tmp_path, monkeypatch, capsys):
    """As in the pod: TLS, the account's folder, the address from the environment."""
    account, other = tmp_path / "account", tmp_path / "other"
    for folder in (account, other):
        folder.mkdir()
        options = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        options += ["-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", folder / "key.pem", "-out", folder / "ca.crt"]
        subprocess.run(["openssl", *options, *files], check=True, capture_output=True)
    (account / "namespace").write_text("m2f")
    (account / "token").write_text("of the account")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", account / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(start_night(), "ACCOUNT", account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    monkeypatch.setenv("JOB_NAME", JOB_NAME)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # that of the store
    monkeypatch.setattr(sys, "argv", ["start_night.py", "--template", "m2f-night"])
    server.states = [SUCCEEDED]
    assert start_night().main() == 0
    assert {token for _, _, token in server.requests} == {"Bearer of the account"}
    server.faults = {"GET": [(403, "not yours")]}
    assert start_night().main() == 2
    assert "error: GET raycronjobs/m2f-night: not yours" in capsys.readouterr().err

    (account / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    api = start_night().Api(f"https://127.0.0.1:{server.server_port}", "m2f", account / "token", account / "ca.crt")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        api("GET", "raycronjobs/m2f-night")


@pytest.mark.parametrize(
    ("job_name", "name"),
    [
        (JOB_NAME, NAME),
        ("try-1", "m2f-night-try-1"),
        ("m2f-night-try-1", "m2f-night-try-1"),
        ("m2f-night-2993334x", "m2f-night-2993334x"),
    ],
)
def test_names(job_name, name):
    assert start_night().ray_job_name("m2f-night", job_name) == name


def test_a_name_that_kuberay_would_refuse_is_refused_before(api):
    with pytest.raises(start_night().RefusedError, match="KubeRay takes 47"):
        start_night().start(api, "m2f-night", "x" * 40)


def test_what_kubectl_notes_about_the_template_is_not_copied():
    template = find(overlay("gpu-spot"), "RayCronJob")
    template["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "maps"}
    assert start_night().ray_job(template, NAME)["metadata"]["annotations"] == {"team": "maps"}


def test_the_program_needs_the_standard_library_alone():
    source = Path(start_night().__file__).read_text()
    roots = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert roots <= set(sys.stdlib_module_names)
