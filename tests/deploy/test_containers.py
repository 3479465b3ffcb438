"""Container files: linted, complete, and made of what is there. Their compose file starts what it says it starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import load_config
from tests.deploy.tools import DEPLOY, REPOSITORY, check, files, name
from tests.support import ENVIRONMENT
from train_client.process import free_port

DOCKERFILE = DEPLOY / "containers" / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    check("hadolint", DOCKERFILE)


@pytest.mark.parametrize("script", files("**/*.sh"), ids=name)
def test_shellcheck_and_bash_find_nothing_in_scripts(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    check("shellcheck", script)


def test_images_drop_root_answer_a_health_check_and_pin_what_ci_tests() -> None:
    stages = re.split(r"(?m)^FROM ", DOCKERFILE.read_text())
    final = {stage.split(" AS ")[1].split()[0]: stage for stage in stages[1:]}
    for target in ("server", "client"):
        assert "\nUSER 10001:10001\n" in final[target]
    assert '"selector-server", "health"' in final["server"]
    pinned = re.search(r"(?m)^uv==(\S+)$", (DEPLOY / "constraints.in").read_text())
    assert pinned
    assert f"uv=={pinned[1]}\n" in final["uv"]
    installs = re.findall(r"(?m)^    uv pip install .*|^    .*&& uv pip install .*", DOCKERFILE.read_text())
    assert all("--constraint /constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_build_context_has_what_the_image_copies_and_no_more() -> None:
    allowed = re.findall(r"(?m)^!(.+)$", (DEPLOY / "containers" / "Dockerfile.dockerignore").read_text())
    text = DOCKERFILE.read_text()
    copied = {word for line in re.findall(r"(?m)^COPY (.+) \S+$", text) for word in line.split()}
    mounted = set(re.findall(r"--mount=source=([^,]+)", text))
    assert set(allowed) == copied | mounted
    assert all((REPOSITORY / path).exists() for path in allowed)


def composed(*more: str) -> dict[str, Any]:
    """What docker-compose makes of the compose files: validated, merged, every variable and path filled in."""
    given = [argument for file in (COMPOSE, *(COMPOSE.with_name(other) for other in more)) for argument in ("-f", file)]
    return dict(yaml.safe_load(check("docker-compose", *given, "config")))


def test_the_compose_file_is_valid_with_and_without_gpus() -> None:
    services = composed()["services"]
    for service in ("selector", "trainer-0", "trainer-1", "inputs"):
        assert services[service]["read_only"]
        assert services[service]["cap_drop"] == ["ALL"]
    assert services["trainer-0"]["command"] == services["trainer-1"]["command"]
    assert services["trainer-0"]["depends_on"] == {"selector": {"condition": "service_healthy"}}
    with_gpus = composed("cuda.yaml")["services"]
    claimed = [
        with_gpus[service]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for service in ("selector", "trainer-0", "trainer-1")
    ]
    assert claimed == [["0"], ["1"], ["2"]]
    assert all(with_gpus[service]["build"]["args"]["TORCH"] == "cu128" for service in ("selector", "trainer-0"))


@pytest.mark.long
def test_what_the_compose_file_starts_trains_the_demo_over_tls(tmp_path: Path) -> None:
    """Every command and variable is the compose file's; only /state and the services' names are this machine's."""
    services = composed()["services"]
    port = str(free_port())
    ours = [
        ("/state", str(tmp_path)), ("/prepare.sh", str(COMPOSE.with_name("prepare.sh"))), ("0.0.0.0", "127.0.0.1"),
        ("selector:50051", f"127.0.0.1:{port}"), ("trainer-0:29500", f"127.0.0.1:{free_port()}"),
    ]  # fmt: skip
    binaries = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}

    def here(text: str) -> str:
        for theirs, mine in ours:
            text = text.replace(theirs, mine)
        return text

    def start(service: str, *entrypoint: str, **more: str) -> subprocess.Popen[bytes]:
        own = {key: here(value) for key, value in services[service].get("environment", {}).items()}
        log = (tmp_path / f"{service}.log").open("wb")
        command = [*entrypoint, *map(here, services[service]["command"])]
        return subprocess.Popen(
            command, env={**ENVIRONMENT, **binaries, **own, **more}, stdout=log, stderr=log, cwd=tmp_path
        )

    assert start("inputs").wait(240) == 0, (tmp_path / "inputs.log").read_text()[-3000:]
    again = start("inputs")
    assert again.wait(30) == 0
    assert "is ready" in (tmp_path / "inputs.log").read_text()
    for_kubernetes = tmp_path / "kubernetes.toml"
    for_kubernetes.write_text((DEPLOY / "kubernetes/demo/run.toml").read_text().replace("/data", str(tmp_path)))
    made, wanted = load_config(tmp_path / "demo/run.toml"), load_config(for_kubernetes)
    for branch in ("model", "data", "selection", "run"):
        assert getattr(wanted, branch) == getattr(made, branch), f"the demo on Kubernetes has another [{branch}]"

    scraped = {f"SUBBATCH_{side}__METRICS__PORT": str(free_port()) for side in ("SERVER", "CLIENT")}
    steps = {"SUBBATCH_RUN__NUM_STEPS": "24", **scraped}
    server = start("selector", sys.executable, "-m", "selector_server", SUBBATCH_SERVER__PORT=port, **steps)
    try:
        trainers = [start(f"trainer-{number}", **steps) for number in (0, 1)]
        try:
            codes = [trainer.wait(240) for trainer in trainers]
        finally:
            for trainer in trainers:
                trainer.kill()
    finally:
        server.terminate()
        server.wait(60)
    assert codes == [0, 0], (tmp_path / "trainer-0.log").read_text()[-3000:]
    output = tmp_path / "demo" / "selected"
    for rank in (0, 1):
        lines = (output / f"steps-rank{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(24))
    assert (output / "checkpoint-20").is_dir()
    assert (output / "model").is_dir()
