"""Check a file for `ray up`: `python infra/check_ray_up.py infra/ray-up/aws.yaml`.

Ray's own check, and what it lets pass: more workers at least than at most, typos in what goes to EC2, start commands
without a token. Asks no cloud. Exit code 0: no faults; 2: faults, one line each, or no such file.
"""

import argparse
import copy
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]
PLACEHOLDER_AMI = "ami-00000000000000000"


def faults(config: Config, *, allow_placeholders: bool = False) -> list[str]:
    found = [*_faults_by_ray(config)]
    if found:
        return found  # what follows relies on the schema
    return [
        *_workers(config),
        *_head(config),
        *_machines_of_ec2(config, allow_placeholders),
        *_own_machines(config),
        *_token(config),
    ]


def _faults_by_ray(config: Config) -> Iterator[str]:
    """Ray's check, after its defaults are filled in: without them it refuses every file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)  # it tells which defaults it fills in
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # jsonschema's, click's and plain ones
        yield f"Ray refuses it: {' '.join(str(getattr(error, 'message', error)).split())[:300]}"


def _workers(config: Config) -> Iterator[str]:
    for name, each in config.get("available_node_types", {}).items():
        least, most = each.get("min_workers", 0), each.get("max_workers", config.get("max_workers", 0))
        if not 0 <= least <= most <= config.get("max_workers", 0):
            top = config.get("max_workers", 0)
            yield f"node type {name}: not 0 <= min_workers {least} <= max_workers {most} <= {top} of the cluster"


def _head(config: Config) -> Iterator[str]:
    head = config.get("available_node_types", {}).get(config.get("head_node_type"))
    if head is None:
        return
    if head.get("resources", {}).get("CPU") != 0:
        yield "the head offers CPUs to actors, which would take memory from the driver; set resources: {CPU: 0}"
    if (head["node_config"].get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
        yield "the head is a spot machine; its loss ends the run"


def _machines_of_ec2(config: Config, allow_placeholders: bool) -> Iterator[str]:
    """Compare node_config with the parameters of RunInstances, which boto3's own description of EC2 lists."""
    if config["provider"]["type"] != "aws":
        return
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, each in config.get("available_node_types", {}).items():
        report = ParamValidator().validate({**each["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            yield f"node type {name}: node_config: {' '.join(report.generate_report().split())[:300]}"
        if each["node_config"].get("ImageId") == PLACEHOLDER_AMI and not allow_placeholders:
            yield f"node type {name}: ImageId {PLACEHOLDER_AMI} is a placeholder"


def _own_machines(config: Config) -> Iterator[str]:
    if config["provider"]["type"] != "local":
        return
    workers = config["provider"].get("worker_ips") or []
    if len({config["provider"].get("head_ip"), *workers}) != len(workers) + 1:
        yield "provider: an address stands twice in head_ip and worker_ips"
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            yield f"{name} is {config.get(name)}, but worker_ips has {len(workers)} machines"


def _token(config: Config) -> Iterator[str]:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config.get(name) or [] if "ray start" in command]
        if not starts or not all("RAY_AUTH_MODE=token" in command for command in starts):
            yield f"{name}: `ray start` without RAY_AUTH_MODE=token: any machine that reaches it can run code"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="check_ray_up.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a YAML file for `ray up`")
    parser.add_argument("--allow-placeholders", action="store_true", help="accept the image of the example")
    given = parser.parse_args(args)
    try:
        config = yaml.safe_load(given.file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        print(f"check_ray_up.py: error: {given.file}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        print(f"check_ray_up.py: error: {given.file} names no provider", file=sys.stderr)
        return 2
    found = faults(config, allow_placeholders=given.allow_placeholders)
    for fault in found:
        print(f"{given.file}: {fault}")
    if not found:
        print(f"{given.file}: no faults")
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
