"""What surrounds the pods: namespace, accounts and rights, network, and names that objects use of each other."""

from collections.abc import Iterator

from infra.rules.manifests import Fault, Manifests, Object, name_of

_PLACEHOLDER_ACCOUNT = "000000000000"
_NOT_NAMESPACED = ("Namespace", "ClusterRole", "ClusterRoleBinding")
# The rights that start_night.py needs: resource -> verbs.
_RIGHTS = {"raycronjobs": {"get"}, "rayjobs": {"create", "get", "delete"}}


def check_namespace(manifests: Manifests) -> Iterator[Fault]:
    namespaces = {obj["metadata"].get("namespace") for obj in manifests.objects if obj["kind"] not in _NOT_NAMESPACED}
    if len(namespaces) > 1:
        found = ", ".join(sorted(map(str, namespaces)))
        yield Fault("namespace", "all objects", f"objects are in several namespaces: {found}")
    for obj in manifests.of_kind("Namespace"):
        if (obj["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield Fault(
                "namespace", name_of(obj), "the label pod-security.kubernetes.io/enforce: restricted is missing"
            )


def check_rights(manifests: Manifests, allow_placeholders: bool) -> Iterator[Fault]:
    for obj in manifests.of_kind("ClusterRole", "ClusterRoleBinding"):
        yield Fault("rights", name_of(obj), "rights beyond the namespace; nothing here needs them")
    for obj in manifests.of_kind("Role"):
        for rule in obj.get("rules") or []:
            for resource in rule.get("resources") or []:
                more = set(rule.get("verbs") or []) - _RIGHTS.get(resource, set())
                if more or rule.get("apiGroups") != ["ray.io"]:
                    said = f"grants {', '.join(sorted(more)) or 'rights'} on {resource}, which nothing here needs"
                    yield Fault("rights", name_of(obj), said)
    for pod in manifests.pods:
        account = manifests.named("ServiceAccount", pod.spec.get("serviceAccountName", "")) or {}
        mounted = pod.spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        if mounted and pod.spec.get("serviceAccountName", "default") == "default":
            said = "the token of the account `default` is mounted; set automountServiceAccountToken: false"
            yield Fault("rights", pod.where, said)
        if mounted and pod.part in ("worker", "submitter"):
            yield Fault("rights", pod.where, "never speaks to Kubernetes; set automountServiceAccountToken: false")
    for obj in manifests.of_kind("ServiceAccount"):
        for name, value in (obj["metadata"].get("annotations") or {}).items():
            if _PLACEHOLDER_ACCOUNT in value and not allow_placeholders:
                said = f"{name}: {value} is a placeholder; patch it with the role that may read and write your bucket"
                yield Fault("placeholder", name_of(obj), said)


def check_references(manifests: Manifests) -> Iterator[Fault]:
    """ServiceAccounts, ConfigMaps and claims that pods use are in the manifests. Secrets are not, on purpose."""
    for pod in manifests.pods:
        account = pod.spec.get("serviceAccountName")
        if account and manifests.named("ServiceAccount", account) is None:
            yield Fault("references", pod.where, f"there is no ServiceAccount {account}")
        for volume in pod.spec.get("volumes") or []:
            for kind, name in (
                ("ConfigMap", (volume.get("configMap") or {}).get("name")),
                ("PersistentVolumeClaim", (volume.get("persistentVolumeClaim") or {}).get("claimName")),
            ):
                if name and manifests.named(kind, name) is None:
                    yield Fault("references", pod.where, f"there is no {kind} {name}")


def check_network(manifests: Manifests) -> Iterator[Fault]:
    """Policies that shut pods off must let DNS, the API server, the store and Ray itself through."""
    policies = [obj for obj in manifests.of_kind("NetworkPolicy") if not obj["spec"].get("podSelector")]
    if not policies:
        yield Fault(
            "network", "all objects", "no NetworkPolicy for all pods: any pod that reaches the dashboard can run code"
        )
        return
    where = name_of(policies[0])
    egress = [rule for policy in policies for rule in policy["spec"].get("egress") or []]
    if any("Egress" in (policy["spec"].get("policyTypes") or []) for policy in policies):
        wanted = {
            "the API server and the store (TCP 443 to all addresses)": _lets_out(egress, 443, "TCP"),
            "the API server (TCP 6443 to all addresses)": _lets_out(egress, 6443, "TCP"),
            "DNS (UDP 53 to kube-system)": any(
                _has_port(rule, 53, "UDP") and any("namespaceSelector" in peer for peer in rule.get("to") or [])
                for rule in egress
            ),
            "Ray within the namespace (podSelector: {} without ports)": any(
                {"podSelector": {}} in (rule.get("to") or []) and not rule.get("ports") for rule in egress
            ),
        }
        for what, is_let in wanted.items():
            if not is_let:
                yield Fault("network", where, f"egress does not let {what} through")
    ingress = [rule for policy in policies for rule in policy["spec"].get("ingress") or []]
    if not any({"podSelector": {}} in (rule.get("from") or []) and not rule.get("ports") for rule in ingress):
        yield Fault("network", where, "ingress does not let Ray within the namespace through (podSelector: {})")
    if not any("kuberay-operator" in str(rule.get("from")) and _has_port(rule, 8265, "TCP") for rule in ingress):
        yield Fault("network", where, "ingress does not let KubeRay's operator to the dashboard (TCP 8265)")
    if any(not rule.get("from") for rule in ingress):
        yield Fault("network", where, "an ingress rule without `from` lets everybody in")


def _has_port(rule: Object, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(each.get("port") == port and each.get("protocol", "TCP") == protocol for each in ports)


def _lets_out(rules: list[Object], port: int, protocol: str) -> bool:
    return any(
        _has_port(rule, port, protocol)
        and (not rule.get("to") or any((peer.get("ipBlock") or {}).get("cidr") == "0.0.0.0/0" for peer in rule["to"]))
        for rule in rules
    )
