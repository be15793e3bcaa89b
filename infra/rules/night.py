"""What a nightly run must have: one schedule, no overlap, an end for every cluster, settings that the job accepts."""

import contextlib
import functools
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.rules.manifests import Fault, Manifests, Object, RayJobSpec, name_of
from infra.rules.ray import gpus_of
from jobs.common.command_line import parse
from pipeline.config import Settings

MAX_RAY_JOB_NAME = 47  # KubeRay adds to it, and Kubernetes' names of services end at 63
DATE = "-20261130-0100"  # what start_night.py adds
_MINUTES = "-29933340"  # what KubeRay's RayCronJob adds
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_PLACEHOLDER_BUCKET = "s3://my-bucket/"


def check_schedule(manifests: Manifests) -> Iterator[Fault]:
    cron_jobs = [job for job in manifests.of_kind("CronJob") if _template_of(job)]
    active = [obj for obj in manifests.of_kind("RayCronJob") if not obj["spec"].get("suspend")]
    if len(cron_jobs) + len(active) > 1:
        said = "several schedules are active; keep the CronJob, or the RayCronJob with suspend: false"
        yield Fault("one-schedule", name_of((active + cron_jobs)[0]), said)
    for obj in manifests.of_kind("RayCronJob"):
        if not obj["spec"].get("timeZone"):
            yield Fault("time-zone", name_of(obj), "timeZone is not set: the schedule follows the operator's clock")
    for job in cron_jobs:
        yield from _cron_job(manifests, job)


def _template_of(cron_job: Object) -> str | None:
    """The RayCronJob that this CronJob copies; None for a CronJob of another purpose."""
    containers = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"].get("containers") or [{}]
    command = [*(containers[0].get("command") or []), *(containers[0].get("args") or [])]
    return command[command.index("--template") + 1] if "--template" in command else None


def _cron_job(manifests: Manifests, cron_job: Object) -> Iterator[Fault]:
    where, spec = name_of(cron_job), cron_job["spec"]
    if spec.get("concurrencyPolicy") != "Forbid":
        yield Fault("overlap", where, "concurrencyPolicy is not Forbid; the lease would refuse the second night")
    for field in ("timeZone", "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        if spec.get(field) in (None, ""):
            yield Fault("time-zone" if field == "timeZone" else "cron-job", where, f"{field} is not set")
    template = manifests.named("RayCronJob", str(_template_of(cron_job)))
    if template is None:
        yield Fault("references", where, f"there is no RayCronJob {_template_of(cron_job)} to copy")
        return
    job = template["spec"].get("jobTemplate") or {}
    attempts, limit = job.get("backoffLimit", 0) + 1, job.get("activeDeadlineSeconds")
    patience = spec["jobTemplate"]["spec"].get("activeDeadlineSeconds")
    if limit is not None and (patience is None or patience < attempts * limit):
        said = f"activeDeadlineSeconds of the Job is {patience}, less than {attempts} times {limit}: nights overlap"
        yield Fault("deadline", where, said)


def check_ray_jobs(manifests: Manifests, allow_placeholders: bool) -> Iterator[Fault]:
    for job in manifests.ray_jobs:
        yield from _name(job)
        yield from _deletion(job)
        for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if not isinstance(job.spec.get(field), int) or job.spec[field] <= 0:
                yield Fault("deadline", job.where, f"{field} is not set: a job that hangs costs machines all day")
        if "submitterPodTemplate" not in job.spec and job.spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
            said = "submitterPodTemplate is not set, and KubeRay's own pod does not meet the restricted profile"
            yield Fault("pod-security", job.where, said)
        yield from _settings(manifests, job, allow_placeholders)


def _name(job: RayJobSpec) -> Iterator[Fault]:
    name = job.holder["metadata"].get("name", "")
    suffix = "" if job.holder["kind"] == "RayJob" else max(DATE, _MINUTES, key=len)
    if len(name + suffix) > MAX_RAY_JOB_NAME or not _DNS_1035.fullmatch(name + suffix):
        said = (
            f"a RayJob would be named {name + suffix}; KubeRay takes {MAX_RAY_JOB_NAME} of a-z, 0-9, -, a letter first"
        )
        yield Fault("name", job.where, said)


def _deletion(job: RayJobSpec) -> Iterator[Fault]:
    """Every end must remove the machines."""
    rules = (job.spec.get("deletionStrategy") or {}).get("deletionRules") or []
    shutdown = job.spec.get("shutdownAfterJobFinishes")
    if job.spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield Fault("deletion", job.where, "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true")
    if rules and shutdown:
        yield Fault("deletion", job.where, "deletionRules and shutdownAfterJobFinishes exclude each other")
    if shutdown or job.spec.get("clusterSelector"):
        return
    if job.holder["kind"] == "RayCronJob" and not job.holder["spec"].get("suspend"):
        said = "no deletion rule matches a job that `ray job stop` stopped: machines stay; use shutdownAfterJobFinishes"
        yield Fault("deletion", job.where, said)
    removes = [rule["condition"] for rule in rules if rule["policy"] in ("DeleteCluster", "DeleteSelf")]
    if not any(condition.get("jobStatus") == "SUCCEEDED" for condition in removes):
        yield Fault("deletion", job.where, "no rule removes the cluster of a job that succeeded")
    if not any(condition.get("jobDeploymentStatus") == "Failed" for condition in removes):
        said = (
            "no rule for jobDeploymentStatus: Failed: after a deadline the Ray job still runs, and so do its machines"
        )
        yield Fault("deletion", job.where, said)


def _settings(manifests: Manifests, job: RayJobSpec, allow_placeholders: bool) -> Iterator[Fault]:
    """The file behind `--config` in the entrypoint: the job takes it, its GPUs exist, retries hide no failure."""
    match = re.search(r"--config[= ](\S+)", job.spec.get("entrypoint", ""))
    if match is None:
        return
    where, text = f"{job.where}, {match[1]}", _mounted(manifests, job, match[1])
    if text is None:
        yield Fault("references", where, "no ConfigMap of these manifests is mounted there in the head")
        return
    settings = _parse(text)
    if isinstance(settings, str):
        yield Fault("settings", where, settings)
        return
    if not allow_placeholders and _PLACEHOLDER_BUCKET in text:
        yield Fault("placeholder", where, f"{_PLACEHOLDER_BUCKET} is a placeholder; name your bucket")
    gpus = sum(gpus_of(group) * group.get("maxReplicas", 0) for group in job.cluster.get("workerGroupSpecs") or [])
    actors = settings.gpu_actors_range()
    if settings.device == "cuda" and not gpus:
        yield Fault("gpus", where, "device is cuda, but no worker group has GPUs")
    if settings.device == "cuda" and actors is not None and actors[1] > gpus * settings.actors_per_gpu():
        each = f" for {settings.actors_per_gpu()} actors each" if settings.actors_per_gpu() > 1 else ""
        said = f"gpu_actors allows {actors[1]} actors, but the worker groups can have {gpus} GPUs{each}; the job would "
        said += "refuse"
        yield Fault("gpus", where, said)
    if job.spec.get("backoffLimit", 0) and settings.max_failure_rate < 1:
        said = (
            f"max_failure_rate is {settings.max_failure_rate:g}, but the retry of a finished run finds nothing to do, "
            "and succeeds; with a backoffLimit, set max_failure_rate: 1 and bound failures by max_failures"
        )
        yield Fault("hidden-failure", where, said)
    if job.spec.get("backoffLimit", 0) and settings.max_cost is not None:
        said = (
            f"max_cost is {settings.max_cost:g}, but a night that stopped there failed for KubeRay, and each retry may "
            "spend as much again; set backoffLimit: 0, and let the next night continue"
        )
        yield Fault("cost", where, said)


def _mounted(manifests: Manifests, job: RayJobSpec, path: str) -> str | None:
    """The text of the file at `path` in the head, if a ConfigMap of the manifests holds it."""
    spec = job.cluster.get("headGroupSpec", {}).get("template", {}).get("spec", {})
    folder, _, file = path.rpartition("/")
    for mount in (spec.get("containers") or [{}])[0].get("volumeMounts") or []:
        for volume in spec.get("volumes") or []:
            if mount["mountPath"] == folder and volume["name"] == mount["name"] and "configMap" in volume:
                config_map = manifests.named("ConfigMap", volume["configMap"]["name"]) or {}
                text: str | None = (config_map.get("data") or {}).get(file)
                return text
    return None


@functools.cache
def _parse(text: str) -> Settings | str:
    """The settings, or the line that says what is wrong with them."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "night.yaml"
        file.write_text(text)
        try:
            with contextlib.redirect_stderr(said):
                return parse(Settings, ["--config", str(file)], prog="m2f-segment")
        except SystemExit:
            return said.getvalue().strip().replace(str(file), file.name)
