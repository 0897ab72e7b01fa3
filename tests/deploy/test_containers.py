"""Container files and manifests, judged by linters and schemas: no engine runs here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from interlatent_live.config import ServiceName, Settings, leaves, load_settings
from interlatent_live.config import variable as variable_of
from tests.deploy.test_deploy import DEPLOY, ROOT

MISSING = "the extra operations is not installed"
yaml = pytest.importorskip("yaml", reason=MISSING)
pytestmark = pytest.mark.operations

KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(path for path in KUBERNETES.glob("*.yaml") if path.stem != "kustomization")
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
OURS = {name: one for name, one in COMPOSE["services"].items() if "profiles" not in one}


def manifest(kind: str) -> dict[str, Any]:
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in MANIFESTS]
    one: dict[str, Any]
    (one,) = [document for document in found if document["kind"] == kind]
    return one


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("StatefulSet")["spec"]["template"]["spec"]
    return spec


def test_the_container_file_passes_the_linter():
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", DEPLOY / "container" / "Containerfile"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_what_the_image_is_built_from_is_let_through():
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert {"pyproject.toml", "constraints.txt", project["readme"], "LICENSE"} <= kept
    # Top-level folders that the package reaches through links (docs/adr/0001).
    links = {path.name for path in (ROOT / "interlatent_live").iterdir() if path.is_symlink()}
    assert {"interlatent_live", *links} <= kept


def test_compose_keeps_to_its_specification():
    specification = pytest.importorskip("compose_spec", reason=MISSING)
    specification.ComposeSpecification(**COMPOSE)


@pytest.mark.parametrize("name", OURS)
def test_every_container_is_closed(name):
    one = OURS[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["user"].split(":")[0] != "0"
    assert "no-new-privileges:true" in one["security_opt"]
    assert one["healthcheck"]["test"][1:] == ["interlatent-live", "health", name]


def test_every_service_has_a_container():
    wanted = set(get_args(ServiceName))
    # In the pod there is a volume of a known size for what the recorder writes.
    assert {one["name"] for one in pod()["containers"]} == wanted
    assert set(OURS) == wanted - {"recorder"}
    for name, one in OURS.items():
        assert one["command"] == [name]


def test_variables_of_containers_are_settings():
    text = (DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")
    text += (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")

    known = {variable_of(name) for name, _ in leaves(Settings())}
    named = set(re.findall(r"INTERLATENT_[A-Z]+__[A-Z_]+", text))
    assert named
    assert named <= known


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_accepts_the_manifest(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=MISSING)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kustomize_takes_every_manifest():
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    assert sorted(listed["resources"]) == [path.name for path in MANIFESTS]


def test_the_configuration_is_one_and_asks_for_keys(tmp_path):
    file = tmp_path / "interlatent.toml"
    text = manifest("ConfigMap")["data"]["interlatent.toml"]
    file.write_text(text, encoding="utf-8")
    settings = load_settings(file, environment={})
    assert settings.security.keys == Path("/etc/interlatent/keys")
    assert set(settings.services()) == {one["name"] for one in pod()["containers"]}
    without = text.replace('keys = "/etc/interlatent/keys"\n', "")
    file.write_text(without, encoding="utf-8")
    with pytest.raises(Exception, match=r"security\.keys"):
        load_settings(file, environment={})


def test_ports_agree_from_the_settings_to_the_policy(tmp_path):
    file = tmp_path / "interlatent.toml"
    file.write_text(manifest("ConfigMap")["data"]["interlatent.toml"], encoding="utf-8")
    endpoints = load_settings(file, environment={}).endpoints
    containers = {one["name"]: one for one in pod()["containers"]}
    by_port = {
        port["containerPort"]: port["name"] for one in containers.values() for port in one["ports"]
    }
    for name in containers:
        health = int(endpoints.health(name).rpartition(":")[2])
        assert by_port[health] == f"{name}-http"
    assert by_port[int(endpoints.agents.rpartition(":")[2])] == "agents"
    assert by_port[int(endpoints.control.rpartition(":")[2])] == "control"
    assert by_port[int(endpoints.pictures.rpartition(":")[2])] == "pictures"
    served = {port["port"]: port["targetPort"] for port in manifest("Service")["spec"]["ports"]}
    assert served == by_port
    rules = manifest("NetworkPolicy")["spec"]["ingress"]
    let_in = {
        number
        for rule in rules
        for port in rule["ports"]
        for number in range(port["port"], port.get("endPort", port["port"]) + 1)
    }
    assert let_in == set(by_port)


def test_pods_are_closed_and_are_asked_how_they_are():
    spec = pod()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    mounted = {volume["name"] for volume in spec["volumes"]} | {"state"}
    for one in [*spec["initContainers"], *spec["containers"]]:
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert {mount["name"] for mount in one["volumeMounts"]} <= mounted
    for one in spec["containers"]:
        assert one["readinessProbe"]["httpGet"]["path"] == "/healthz"
        assert one["livenessProbe"]["httpGet"]["path"] == "/healthz/live"
        assert one["args"][0] == one["name"]
