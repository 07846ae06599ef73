"""What lies in deploy/ and examples/: linted, and true to the server's own options and routes."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from perwatt import cli

ROOT = Path(__file__).parent.parent.parent
KSERVE_ONLY = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / name).read_text()))


def containers() -> list[dict[str, Any]]:
    plain = next(each for each in documents("kubernetes.yaml") if each["kind"] == "Deployment")
    return [
        *plain["spec"]["template"]["spec"]["containers"],
        *documents("kserve.yaml")[0]["spec"]["predictor"]["containers"],
    ]


def test_the_dockerfile_has_no_lint() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([linter, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("version", ["1.30", "1.35"])
def test_the_manifests_are_valid(version: str) -> None:
    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
    (service,) = documents("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    pod = {key: value for key, value in service["spec"]["predictor"].items() if key not in KSERVE_ONLY}
    # A custom predictor is a pod's specification and a few fields of KServe's own.
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, version, strict=True
    )


def test_their_arguments_are_options_of_the_command_and_their_probes_routes() -> None:
    command = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    for container in containers():
        assert {argument for argument in container["args"] if argument.startswith("--")} <= options
        ports = {str(each["containerPort"]) for each in container["ports"]}
        assert container["args"][container["args"].index("--port") + 1] in ports
        for probe in ("startupProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["path"] == "/v2/health/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
        assert any(each["name"] == "PERWATT_TOKEN" for each in container["env"])
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (given,) = re.findall(r"^CMD \[(.*)\]$", dockerfile, re.MULTILINE)
    assert {word for word in shlex.split(given.replace(",", " ")) if word.startswith("--")} <= options


def test_the_grace_of_a_pod_is_longer_than_what_it_needs_to_end() -> None:
    pod = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain = float(container["args"][container["args"].index("--drain") + 1])
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pause


def test_the_shell_client_is_plain_sh() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    assert subprocess.run([shell, "-n", ROOT / "examples" / "client.sh"]).returncode == 0
