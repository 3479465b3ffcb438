"""Kubernetes manifests: built by kustomize with real secrets, valid in several versions, and pointing at each other."""

from __future__ import annotations

import ipaddress
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from selector_server.readiness import SERVICE
from shared.config import Config, load_config
from shared.tokens import TokenFile, own_token
from tests.deploy.tools import DEPLOY, REPOSITORY, check

KUBERNETES = DEPLOY / "kubernetes"
VARIANTS = ("base", "demo", "cuda")
# The oldest that has gRPC probes for good, and the newest that the validator knows.
VERSIONS = ("1.27", "1.37")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests with secrets that the script beside them made."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("secrets"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    made = subprocess.run([folder / "make-secrets.sh"], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    again = subprocess.run([folder / "make-secrets.sh"], env=environment, capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: list(yaml.safe_load_all(check("kubectl", "kustomize", folder / name))) for name in VARIANTS}


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].startswith(name)]
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in objects:
        if item["kind"] in ("StatefulSet", "Job"):
            yield item["spec"]["template"]["spec"]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from (*pod.get("initContainers", ()), *pod["containers"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(folder: Path, built: dict[str, list[dict[str, Any]]], version: str) -> None:
    for name in VARIANTS:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(built[name]))
    paths = [folder / f"{name}.yaml" for name in VARIANTS]
    check("kubernetes-validate", "--strict", "--quiet", "--kubernetes-version", version, *paths)


@pytest.mark.parametrize("name", VARIANTS)
def test_all_that_pods_refer_to_is_there(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    objects = built[name]
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    claims = {claim["metadata"]["name"] for item in objects if item["kind"] == "StatefulSet"
              for claim in item["spec"]["volumeClaimTemplates"]}  # fmt: skip
    for pod in pods(objects):
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in there
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert all(
                ("ConfigMap", source["configMapRef"]["name"]) in there for source in container.get("envFrom", ())
            )
    labels = {item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"].items()
              for item in objects if item["kind"] in ("StatefulSet", "Job")}  # fmt: skip
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for item in (item for item in objects if item["kind"] == kind):
            spec = item["spec"]
            wanted = spec.get("selector", spec.get("podSelector"))
            wanted = wanted.get("matchLabels", wanted)
            assert wanted.items() <= labels[item["metadata"]["name"]]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_container_is_root_or_may_become_it(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    for pod in pods(built[name]):
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
    for container in containers(built[name]):
        security = container["securityContext"]
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def configured(objects: list[dict[str, Any]], which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What a container of a pod reads: its run.toml and its environment."""
    path = tmp_path / "run.toml"
    path.write_text(one(objects, "ConfigMap", "run-")["data"]["run.toml"])
    for key in [key for key in os.environ if key.startswith("SUBBATCH_")]:
        monkeypatch.delenv(key)
    for key, value in one(objects, "ConfigMap", which)["data"].items():
        monkeypatch.setenv(key, value)
    return load_config(path)


@pytest.mark.parametrize("name", VARIANTS)
def test_configurations_are_ours_and_ports_policies_and_probes_agree(
    built: dict[str, list[dict[str, Any]]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = built[name]
    server = configured(objects, "selector-environment", tmp_path, monkeypatch).server
    client = configured(objects, "client-environment", tmp_path, monkeypatch)
    selector = one(objects, "StatefulSet", "selector")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in selector["ports"]}
    assert (ports["grpc"], ports["health"], ports["metrics"]) == (server.port, server.health_port, server.metrics.port)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert selector[probe]["grpc"]["port"] == server.health_port
    assert client.client.selector == f"selector:{server.port}"
    allowed = [policy for policy in objects if policy["kind"] == "NetworkPolicy"]
    into = next(policy for policy in allowed if policy["metadata"]["name"] == "selector")["spec"]["ingress"][0]
    assert [port["port"] for port in into["ports"]] == [server.port]
    assert selector["readinessProbe"]["grpc"]["service"] == SERVICE
    scraped = {policy["metadata"]["name"]: policy["spec"]["ingress"][1]["ports"][0]["port"] for policy in allowed}
    assert scraped == {"selector": server.metrics.port, "trainer": client.client.metrics.port}
    mounts = {mount["mountPath"] for container in containers(objects) for mount in container["volumeMounts"]}
    for path in (server.journal, client.model.path, client.data.store, client.train.output, server.token_file):
        assert any(Path(str(path)).is_relative_to(mount) for mount in mounts), path
    assert client.train.save_every


def test_the_training_job_is_one_job_of_as_many_pods(built: dict[str, list[dict[str, Any]]]) -> None:
    for name in VARIANTS:
        job = one(built[name], "Job", "trainer")["spec"]
        command = job["template"]["spec"]["containers"][0]["command"]
        assert job["completions"] == job["parallelism"]
        assert f"--nnodes={job['completions']}" in command
        assert "--node_rank=$(JOB_COMPLETION_INDEX)" in command
        assert "--master_addr=trainer-0.trainer" in command
        overrides = command[command.index("train") + 1 :]
        assert overrides[0] == "--config=/etc/subbatch/run.toml"
        loaded = load_config(None, overrides[1:])
        assert (str(loaded.train.resume), loaded.run.restart) == ("latest", True)
    gpus = one(built["cuda"], "Job", "trainer")["spec"]["template"]["spec"]["containers"][0]
    assert gpus["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "--nproc_per_node=8" in gpus["command"]


def test_secrets_are_those_that_both_ends_need_and_names_are_the_service_s(folder: Path) -> None:
    secrets = folder / "base" / "secrets"
    certificate = x509.load_pem_x509_certificate((secrets / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"selector", "selector.subbatch.svc.cluster.local"} <= set(names.get_values_for_type(x509.DNSName))
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)
    tokens = TokenFile(secrets / "tokens")
    assert tokens.owner(own_token(secrets / "trainer.token")) == "trainer"
    assert tokens.owner(own_token(secrets / "metrics.token")) == "metrics"
    for path in secrets.iterdir():
        assert path.suffix == ".pem" or not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
