"""Check Kubernetes manifests of the nightly run: `kubectl kustomize my-cluster | python infra/check_manifests.py -`.

Checks what schemas do not say: resources that add up, an end for every cluster, the restricted profile, a network that
lets Ray work, settings that the job accepts. The API server checks the schemas: `kubectl apply --dry-run=server`.

Exit code 0: no faults; 2: faults, one line each, or no manifests.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import yaml

if __package__ in (None, ""):  # run as a file: the packages lie in the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.rules import cluster, night, pods, ray
from infra.rules.manifests import Fault, Manifests, Object

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C library's is ten times as fast


def faults(objects: Sequence[Object], *, allow_placeholders: bool = False) -> list[Fault]:
    """Every rule that the objects break. `allow_placeholders`: the example's bucket, role and image are no faults."""
    manifests = Manifests(tuple(objects))
    checks = (
        pods.check_security,
        pods.check_temporary_folder,
        partial(pods.check_images, allow_placeholders=allow_placeholders),
        pods.check_secrets,
        pods.check_resources,
        ray.check_clusters,
        ray.check_grace,
        ray.check_head_stays,
        night.check_schedule,
        partial(night.check_ray_jobs, allow_placeholders=allow_placeholders),
        cluster.check_namespace,
        partial(cluster.check_rights, allow_placeholders=allow_placeholders),
        cluster.check_references,
        cluster.check_network,
    )
    found: list[Fault] = []
    for check in checks:
        try:
            found += check(manifests)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            # The rules rely on the schemas, which others check.
            said = (
                f"an object does not follow its schema: {type(error).__name__} {error}; kubectl apply --dry-run=server"
            )
            found.append(Fault("schema", "manifests", said))
    return sorted(set(found), key=lambda fault: (fault.where, fault.rule, fault.message))


class UnreadableError(Exception):
    """There is nothing to check, for the reason in the text."""


def read(place: str) -> list[Object]:
    """The objects in a file, in all YAML files of a folder, or on standard input (`-`)."""
    if place == "-":
        return list(_objects("standard input", sys.stdin.read()))
    path = Path(place)
    files = sorted((*path.rglob("*.yaml"), *path.rglob("*.yml"))) if path.is_dir() else [path]
    if any(file.name.startswith("kustomization.") for file in files):
        raise UnreadableError(f"{place} holds a kustomization.yaml; build it: kubectl kustomize {place} | ... -")
    try:
        return [obj for file in files for obj in _objects(str(file), file.read_text())]
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{place} cannot be read: {error}") from None


def _objects(source: str, text: str) -> Iterator[Object]:
    try:
        documents = [document for document in yaml.load_all(text, Loader=_LOADER) if document is not None]
    except yaml.YAMLError as error:
        raise UnreadableError(f"{source}: {' '.join(str(error).split())}") from None
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict) or "kind" not in document:
            raise UnreadableError(f"{source}: a document is no Kubernetes object with kind and metadata")
        yield document


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="check_manifests.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", help="a YAML file, a folder of such files, or - for standard input")
    parser.add_argument(
        "--allow-placeholders", action="store_true", help="accept the bucket, role and image of the examples"
    )
    given = parser.parse_args(args)
    try:
        objects = read(given.place)
        if not objects:
            raise UnreadableError(f"{given.place} holds no Kubernetes object")
    except UnreadableError as error:
        print(f"check_manifests.py: error: {error}", file=sys.stderr)
        return 2
    found = faults(objects, allow_placeholders=given.allow_placeholders)
    for fault in found:
        print(fault)
    if found:
        print(f"check_manifests.py: {len(found)} faults in {len(objects)} objects", file=sys.stderr)
        return 2
    print(f"{len(objects)} objects: no faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
