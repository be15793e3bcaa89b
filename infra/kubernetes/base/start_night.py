"""Create the dated RayJob of a night from a suspended RayCronJob, and wait until the RayJob ends.

Runs in the pod of the CronJob `m2f-night`, with Python's standard library and the pod's ServiceAccount. The RayJob is
named by the time for which its Job was scheduled, so a pod that takes the place of a lost one finds the same RayJob.

Exit code 0: the RayJob succeeded; 1: it failed, was stopped or was deleted; 2: it could not be created.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_NAME = 47  # KubeRay refuses a longer name of a RayJob
POLL_SECONDS = 20.0
REQUEST_SECONDS = 30.0
# What `kubectl apply` and Argo CD write about the object itself.
_NOT_COPIED = ("kubectl.kubernetes.io/", "argocd.argoproj.io/")


class RefusedError(Exception):
    """The API server refused a request; trying again would not help."""


class Api:
    """The RayJobs and RayCronJobs of one namespace."""

    def __init__(self, server: str, namespace: str, token_file: Path, ca_file: Path | None):
        self.base = f"{server}/apis/ray.io/v1/namespaces/{namespace}"
        self.token_file = token_file
        context = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        # The proxy of the environment is for the store, not for the API server.
        handlers = [
            urllib.request.ProxyHandler({}),
            *([urllib.request.HTTPSHandler(context=context)] if context else []),
        ]
        self.opener = urllib.request.build_opener(*handlers)

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The object in the answer; None if there is no such object (404) or if it exists already (409).

        RefusedError if the request is wrong or not allowed. Network errors and answers 5xx are raised as OSError.
        """
        request = urllib.request.Request(
            f"{self.base}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            # The kubelet renews the token's file every hour.
            headers={"Authorization": f"Bearer {self.token_file.read_text()}", "Content-Type": "application/json"},
        )
        try:
            with self.opener.open(request, timeout=REQUEST_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{method} {path}: the answer is cut off or is no JSON: {error}") from None
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return None
            message = _message(error)
            if error.code in (400, 403, 405, 422):
                raise RefusedError(f"{method} {path}: {message}") from None
            raise OSError(f"{method} {path}: {error.code} {message}") from None


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    return " ".join(text.split())[:500] or str(error.reason)


def ray_job_name(template: str, job_name: str) -> str:
    """`m2f-night-20261130-0100` (UTC) for the Job `m2f-night-29933340`, whose number counts minutes since 1970.

    A Job that somebody made by hand keeps its name behind the template's.
    """
    minutes = re.fullmatch(rf"{re.escape(template)}-(\d{{8}})", job_name)
    if minutes:
        return f"{template}-{datetime.fromtimestamp(60 * int(minutes[1]), UTC):%Y%m%d-%H%M}"
    return f"{template}-{job_name.removeprefix(template).strip('-')}"


def ray_job(template: dict[str, Any], name: str) -> dict[str, Any]:
    """The RayJob of this name, with the labels (such as the queue's), annotations and spec of the template."""
    about = template["metadata"]
    annotations = {k: v for k, v in about.get("annotations", {}).items() if not k.startswith(_NOT_COPIED)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "labels": {**about.get("labels", {}), "ray.io/cronjob-name": about["name"]},
            "annotations": annotations,
        },
        "spec": template["spec"]["jobTemplate"],
    }


def _patiently(request: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Repeat a request while the API server does not answer; the deadline of the Job ends this."""
    while True:
        try:
            return request()
        except OSError as error:
            say(f"the API server does not answer, trying again: {error}")
            time.sleep(POLL_SECONDS)


def start(api: Api, template_name: str, job_name: str) -> str:
    """The name of the RayJob, which exists now. RefusedError if it cannot be created."""
    name = ray_job_name(template_name, job_name)
    if len(name) > MAX_NAME:
        raise RefusedError(
            f"the name {name} has {len(name)} characters, and KubeRay takes {MAX_NAME}; name the Job shorter"
        )
    template = _patiently(lambda: api("GET", f"raycronjobs/{template_name}"))
    if template is None:
        raise RefusedError(f"there is no RayCronJob {template_name} to copy")
    created = _patiently(lambda: api("POST", "rayjobs", ray_job(template, name)))
    say(f"RayJob {name} " + ("is there already; waiting for it" if created is None else "is created"))
    return name


def wait(api: Api, name: str) -> int:
    """The exit code for how the RayJob ended; a line for each change of its state."""
    before = ""
    while True:
        found = _patiently(lambda: api("GET", f"rayjobs/{name}"))
        if found is None:
            say(f"RayJob {name} was deleted")
            return 1
        status = found.get("status", {})
        deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
        state = " ".join(filter(None, (deployment, job, status.get("reason", ""), status.get("message", ""))))
        if state != before:
            say(f"RayJob {name}: {' '.join(state.split())[:500]}")
            before = state
        if deployment == "Complete" and job == "STOPPED":
            # No deletion rule of KubeRay matches this state, and the machines would stay.
            _patiently(lambda: api("DELETE", f"rayjobs/{name}"))
            say(f"RayJob {name} was stopped by hand; deleted it with its machines")
            return 1
        if deployment in ("Complete", "Failed", "ValidationFailed"):
            return 0 if deployment == "Complete" and job == "SUCCEEDED" else 1
        time.sleep(POLL_SECONDS)


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", required=True, help="the RayCronJob to copy spec.jobTemplate from")
    args = parser.parse_args()
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    api = Api(server, (ACCOUNT / "namespace").read_text(), ACCOUNT / "token", ACCOUNT / "ca.crt")
    try:
        return wait(api, start(api, args.template, os.environ["JOB_NAME"]))
    except RefusedError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
