"""The Kubernetes base as files: valid for Kubernetes' own schemas, hardened, and agreeing with itself and with compose.

No cluster is asked. KEDA's resources have no schema here; their shape is checked by hand.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import promql_parser as promql
import pytest
import yaml

from pipeline.adapters.login_names import Login
from pipeline.config import Settings
from tests.support.paths import ROOT
from tests.unit.infra.test_monitoring import nodes, series

BASE = ROOT / "infra" / "kubernetes"
VERSIONS = ("1.30", "1.33")
"""The oldest that is meant, and a later one."""
NAME = "app.kubernetes.io/name"
Document = dict[str, Any]

LOGIN_OF = {
    "migrate": "owner",
    "intake": "intake",
    "control-worker": "control",
    "edit-worker": "editor",
    "web": "web",
    "serve": "serving",
}


def kustomization() -> Document:
    found: Document = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return found


def documents() -> list[Document]:
    files = kustomization()["resources"]
    return [document for file in files for document in yaml.safe_load_all((BASE / file).read_text())]


def of_kind(kind: str) -> dict[str, Document]:
    return {found["metadata"]["name"]: found for found in documents() if found["kind"] == kind}


def pods() -> dict[str, Document]:
    return {name: found["spec"]["template"] for kind in ("Deployment", "Job") for name, found in of_kind(kind).items()}


def containers() -> Iterator[tuple[str, Document]]:
    for name, pod in pods().items():
        for container in pod["spec"]["containers"]:
            yield name, container


def secret_files(pod: Document) -> dict[str, tuple[str, str]]:
    """Files in /run/secrets of a pod: the secret and the key that each is of."""
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "secrets"]
    return {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def test_every_file_is_a_resource_of_the_base() -> None:
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization()["resources"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_for_kubernetes(version: str) -> None:
    kinds = set()
    for document in documents():
        if not document["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(document, version, strict=True)
            kinds.add(document["kind"])
    assert {"Deployment", "Job", "Service", "NetworkPolicy", "PodDisruptionBudget", "Namespace"} <= kinds


def test_the_schemas_find_what_is_wrong() -> None:
    document = of_kind("Deployment")["web"]
    document["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_kubectl_renders_the_same_resources_where_it_is_there() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        # What it would put together is checked above, document by document; the generators are checked below.
        assert {generator["name"] for generator in kustomization()["configMapGenerator"]} == {"settings", "edit-worker"}
        return
    done = subprocess.run([kubectl, "kustomize", str(BASE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert len(rendered) == len(documents()) + len(kustomization()["configMapGenerator"])
    assert {found["metadata"].get("namespace", "corrigenda") for found in rendered} == {"corrigenda"}
    maps = {found["metadata"]["name"] for found in rendered if found["kind"] == "ConfigMap"}
    for found in rendered:
        if found["kind"] == "Deployment":
            named = {e["configMapRef"]["name"] for e in found["spec"]["template"]["spec"]["containers"][0]["envFrom"]}
            assert named <= maps, "generated names carry a digest, so that a change of settings restarts the pods"


def test_nothing_runs_as_root_or_writes_where_it_should_not() -> None:
    for name, pod in pods().items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
    for name, container in containers():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"], name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert {"/tmp", "/var/lib/corrigenda"} <= written <= {"/tmp", "/var/lib/corrigenda", "/dev/shm"}, name
        assert "memory" in container["resources"]["limits"], name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name


def test_what_runs_on_is_asked_for_progress_and_for_readiness() -> None:
    for name, container in containers():
        if name == "migrate":
            continue
        ports = {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[kind].get("httpGet") or container[kind]["tcpSocket"]
            assert asked["port"] in ports, name
        if name != "mlflow":
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez", name
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", name


def test_settings_are_settings_that_exist_with_values_that_they_take() -> None:
    lines = [line.partition("=") for line in (BASE / "settings.env").read_text().splitlines() if line]
    generators = {generator["name"]: generator for generator in kustomization()["configMapGenerator"]}
    lines += [line.partition("=") for line in generators["edit-worker"]["literals"]]
    for _, container in containers():
        lines += [(variable["name"], "=", variable["value"]) for variable in container.get("env", ())]
    given = {name.removeprefix("CORRIGENDA_").lower(): value for name, _, value in lines if "CORRIGENDA_" in name}
    assert set(given) <= set(Settings.model_fields)
    Settings.model_validate(given)
    assert not any(word in name for name, _, _ in lines for word in ("PASSWORD", "TOKEN", "DATABASE_URL", "REDIS_URL"))


def test_each_pod_logs_in_as_itself_and_sees_no_other_secret() -> None:
    for name, login in LOGIN_OF.items():
        files = secret_files(pods()[name])
        assert files["corrigenda_database_url"] == (f"{login}-login", "database-url")
        others = {secret for secret, _ in files.values() if secret.endswith("-login")} - {f"{login}-login"}
        assert not others or name == "migrate", name
    assert {f"{login.name}_database_url" for login in Login} <= set(secret_files(pods()["migrate"]))
    ours = {path for name in LOGIN_OF for path in secret_files(pods()[name]) if path.startswith("corrigenda_")}
    assert ours <= {f"corrigenda_{name}" for name in Settings.model_fields}


def test_who_talks_to_kafka_has_its_login_and_certificates_where_there_are_any() -> None:
    talks = {
        name
        for name, policy in of_kind("NetworkPolicy").items()
        if 9092 in {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    }
    assert talks == {"migrate", "intake", "control-worker", "web"}
    for name, pod in pods().items():
        [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "secrets"]
        found = [source["secret"] for source in volume["projected"]["sources"] if source["secret"]["name"] == "kafka"]
        assert [one["optional"] for one in found] == [True] * (name in talks), f"{name}: a broker may ask for no login"
    files = secret_files(pods()["intake"])
    assert files["corrigenda_kafka_sasl_username"] == ("kafka", "username")
    assert files["corrigenda_kafka_sasl_password"] == ("kafka", "password")
    head = (BASE / "kustomization.yaml").read_text().split("apiVersion")[0]
    for setting, key in {"cafile": "ca.crt", "certfile": "tls.crt", "keyfile": "tls.key"}.items():
        assert files[f"kafka_{key}"] == ("kafka", key)
        assert f"_SSL_{setting.upper()}=/run/secrets/kafka_{key}" in head


def test_every_replica_of_the_pages_knows_a_session_and_sends_it_over_tls_alone() -> None:
    assert secret_files(pods()["web"])["corrigenda_web_session_key"] == ("web", "session-key")
    assert "CORRIGENDA_WEB_PUBLIC_URL=https://" in (BASE / "settings.env").read_text()
    for name in ("web", "control-worker"):
        [container] = pods()[name]["spec"]["containers"]
        assert {"configMapRef": {"name": "settings"}} in container["envFrom"], name


def test_the_head_of_the_base_names_every_secret() -> None:
    head = (BASE / "kustomization.yaml").read_text().split("apiVersion")[0]
    used = {pair for pod in pods().values() for pair in secret_files(pod).values()}
    assert [pair for pair in sorted(used) if pair[0] not in head or f"{pair[1]}" not in head] == []


def test_every_pod_has_a_policy_and_meets_those_it_talks_to() -> None:
    policies = of_kind("NetworkPolicy")
    everything = policies["nothing-else"]["spec"]
    assert everything["podSelector"] == {}
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everything
    for name, pod in pods().items():
        spec = policies[name]["spec"]
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert spec["egress"], name
        ports = {port["containerPort"] for port in pod["spec"]["containers"][0].get("ports", ())}
        opened = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        assert opened == ports, name
    let_in = policies["mlflow"]["spec"]["ingress"][0]["from"]
    callers = {peer["podSelector"]["matchLabels"][NAME] for peer in let_in if "podSelector" in peer}
    to_mlflow = {
        name
        for name, policy in policies.items()
        for rule in policy["spec"].get("egress", ())
        for peer in rule.get("to", ())
        if peer.get("podSelector", {}).get("matchLabels") == {NAME: "mlflow"}
    }
    assert callers == to_mlflow == {"control-worker", "serve"}


def test_what_is_outside_is_reached_by_those_that_ask_it() -> None:
    """Receivers of webhooks and an OpenID Connect provider at 443, a collector of traces at 4318."""
    anywhere = {
        name: {port["port"] for rule in policy["spec"].get("egress", ()) if "to" not in rule for port in rule["ports"]}
        for name, policy in of_kind("NetworkPolicy").items()
    }
    assert {name for name, ports in anywhere.items() if 443 in ports} == {"control-worker", "web"}
    assert {name for name, ports in anywhere.items() if 4318 in ports} == set(LOGIN_OF) - {"migrate"}


def test_budgets_and_services_select_pods_that_there_are() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    budgets = of_kind("PodDisruptionBudget")
    assert set(budgets) == set(LOGIN_OF) - {"migrate"}
    for name, budget in budgets.items():
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    for name, service in of_kind("Service").items():
        assert service["spec"]["selector"].items() <= labels[name].items()
        ports = {port["name"] for port in pods()[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_a_batch_has_time_to_end_when_a_node_is_drained() -> None:
    limit = Settings().command_timeout.total_seconds()
    assert pods()["edit-worker"]["spec"]["terminationGracePeriodSeconds"] >= limit
    strategy = of_kind("Deployment")["edit-worker"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}, "a new worker needs the device that the old one holds"


def test_what_scales_is_scaled_by_what_waits_and_by_nobody_else() -> None:
    scaled = of_kind("ScaledObject")
    deployments = of_kind("Deployment")
    assert set(scaled) == {"edit-worker", "intake"}
    for name, found in scaled.items():
        assert found["apiVersion"] == "keda.sh/v1alpha1"
        spec = found["spec"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert "replicas" not in deployments[name]["spec"], "KEDA sets it, and applying the base again must not"
        assert 0 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            assert set(trigger) == {"type", "metadata"}
            assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes nothing else"
    [by_lag] = scaled["intake"]["spec"]["triggers"]
    known = {"bootstrapServers", "consumerGroup", "topic", "lagThreshold"}
    assert (by_lag["type"], set(by_lag["metadata"])) == ("kafka", known)
    assert by_lag["metadata"]["consumerGroup"] == Settings().intake_group
    assert by_lag["metadata"]["topic"] == Settings().requests_topic
    [by_work] = scaled["edit-worker"]["spec"]["triggers"]
    assert by_work["type"] == "prometheus"
    parsed = nodes(promql.parse(by_work["metadata"]["query"]))
    asked = {node.name for node in parsed if isinstance(node, promql.VectorSelector)}
    assert asked <= set(series())


def test_the_images_are_those_that_are_built() -> None:
    built = {f"corrigenda-{path.stem}" for path in (ROOT / "infra" / "images").glob("*.Dockerfile")}
    assert {container["image"] for _, container in containers()} <= built
    assert {image["name"] for image in kustomization()["images"]} == built
