"""The files of `deploy/`: they parse, and what they name is what the code has. None was run."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema

from kinject_assets.cli import main
from kinject_assets.config import Cluster, load_profile
from kinject_assets.defs.commands import PORTS
from kinject_assets.defs.instance import dagster_home
from kinject_assets_tests.documents import REPOSITORY, blocks, command_of

DEPLOY = REPOSITORY / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
INSTALLED = "/opt/kinject/.venv/bin/kinject"
KINJECTS = ("code", "webserver", "webserver-read-only", "daemon")

FOR_COMPOSE = {"KINJECT_STUDY"}
"""Variables that compose reads, and nothing in a container."""


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(text(name)))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return documents("compose.yaml")[0]


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return documents("kubernetes/dagster-values.yaml")[0]


@pytest.fixture(scope="module")
def ray() -> dict[str, Any]:
    return documents("kubernetes/raycluster.yaml")[0]["spec"]


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert found, package
    return found[1]


def started() -> Iterator[list[str]]:
    """Every kinject command of the files."""
    for service in documents("compose.yaml")[0]["services"].values():
        if (command := service.get("command", [""]))[0] == "kinject":
            yield command[1:]
    for unit in UNITS:
        yield shlex.split(setting(unit, "ExecStart"))[1:]
    default = re.search(r"^CMD (\[.*\])", text("Dockerfile"), re.M)
    assert default
    yield ast.literal_eval(default[1])[1:]


def setting(unit: Path, name: str) -> str:
    found = re.search(rf"^{name}=(.*)$", unit.read_text(encoding="utf-8"), re.M)
    assert found, f"{unit.name}: {name}"
    return found[1]


@pytest.mark.parametrize("words", list(started()), ids=shlex.join)
def test_commands_are_real(words: list[str]) -> None:
    command, rest = command_of(main, tuple(words))
    assert command.name == "serve"
    command.make_context("serve", list(rest))


def test_every_part_is_started_everywhere(compose: dict[str, Any]) -> None:
    services = {compose["services"][name]["command"][2] for name in KINJECTS}
    units = {setting(unit, "ExecStart").split()[2] for unit in UNITS}
    assert services == units == {"code", "webserver", "daemon"}


def test_variables_are_those_that_the_code_reads() -> None:
    sources = (REPOSITORY / "kinject_assets").rglob("*.py")
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    caddy = set(re.findall(r"\{\$(\w+)\}", text("caddy/Caddyfile")))
    named = {
        variable
        for path in FILES
        for variable in re.findall(r"\bKINJECT_\w+", path.read_text(encoding="utf-8"))
    }
    assert {"KINJECT_PROFILE", "KINJECT_HOME", "KINJECT_POSTGRES_URL"} <= named
    wrong = {v for v in named if f'"{v}"' not in code and f"${v}" not in code}
    assert wrong - caddy - FOR_COMPOSE == set()


def test_the_example_has_every_variable_and_no_secret() -> None:
    example = dict(
        line.split("=", 1)
        for line in text(".env.example").splitlines()
        if line and not line.startswith("#")
    )
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text("compose.yaml")))
    assert set(example) == asked
    secrets = {
        name: value for name, value in example.items() if "PASSWORD" in name or "KEY" in name
    }
    assert len(secrets) >= 3
    assert set(secrets.values()) == {""}


SECRET = re.compile(r"(?i)(password|secret|api_key|access_key|token|hash)\w*\"?\s*[:=]\s*(\S.*)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_has_a_value(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        found = SECRET.search(line)
        if found and not line.lstrip().startswith("#") and "Name" not in line:
            assert re.match(r"[$\[{?]|kinject-secrets|false", found[2]), f"{path.name}: {line}"


def test_services_are_hardened_and_healthy(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert name == "bucket" or service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ":latest" not in service["image"]
        assert name in {*KINJECTS, "postgres", "minio", "bucket"}
    for name in KINJECTS:
        service = compose["services"][name]
        assert service["user"] == "10001:10001"
        assert service["image"] == "kinject:local"
    # A name that stays: runs are known by process and host.
    assert compose["services"]["code"]["hostname"]
    assert "--read-only" in compose["services"]["webserver-read-only"]["command"]
    held = {n for n in KINJECTS if "OPENAI_API_KEY" in compose["services"][n]["environment"]}
    assert held == {"code"}, "keys go to the process that needs them alone"


def test_ports_agree(compose: dict[str, Any], values: dict[str, Any]) -> None:
    services = compose["services"]
    published = {
        port.split(":")[1]: name
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    assert published == {"3000": "webserver", "3001": "webserver-read-only"}
    assert set(re.findall(r"reverse_proxy 127\.0\.0\.1:(\d+)", text("caddy/Caddyfile"))) == set(
        published
    )
    code = PORTS["code"]
    for name in KINJECTS[1:]:
        command = services[name]["command"]
        assert command[command.index("--code-server") + 1] == f"code:{code}"
        assert services[name]["depends_on"]["code"] == {"condition": "service_healthy"}
    assert services["code"]["healthcheck"]["test"][-1] == str(code)
    for unit in UNITS:
        words = shlex.split(setting(unit, "ExecStart"))
        at = words[-1] if "serve code" in " ".join(words) else words[-1].rpartition(":")[2]
        assert at == str(code), unit.name
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert deployment["port"] == code
    assert f"EXPOSE {PORTS['webserver']} {code}" in text("Dockerfile")


def test_modules_of_health_checks_exist(compose: dict[str, Any]) -> None:
    checked = 0
    for service in compose["services"].values():
        test = service.get("healthcheck", {}).get("test", [])
        if test[1:3] == ["python", "-m"]:
            assert importlib.util.find_spec(test[3])
            checked += 1
    assert checked == 2


def test_the_image_is_made_of_what_is_there() -> None:
    kept = text("Dockerfile.dockerignore").splitlines()
    for line in text("Dockerfile").splitlines():
        if line.startswith("COPY") and "--from" not in line:
            *sources, _ = line.split()[1:]
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                assert f"!{source}" in kept, source
    (extras,) = re.findall(r"ARG EXTRAS=(.*)", text("Dockerfile"))
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])
    (python,) = re.findall(r"ARG PYTHON=(.*)", text("Dockerfile"))
    assert f">={python}" in project()["requires-python"]
    assert "USER 10001:10001" in text("Dockerfile")
    assert "ENTRYPOINT" not in text("Dockerfile"), "Dagster's chart gives whole commands"


def test_versions_are_the_pinned_ones(ray: dict[str, Any]) -> None:
    assert ray["rayVersion"] == pinned("ray")
    assert f"--version {pinned('dagster')}" in text("kubernetes/dagster-values.yaml")


def test_units_name_one_program_and_one_environment() -> None:
    assert len(UNITS) == 3
    for unit in UNITS:
        assert setting(unit, "ExecStart").startswith(INSTALLED)
        assert setting(unit, "EnvironmentFile") == "/etc/kinject/kinject.env"
        assert setting(unit, "NoNewPrivileges") == "yes"
        assert setting(unit, "ProtectSystem") == "strict"
        assert setting(unit, "User") == "kinject"
        # Processes that cannot be seen would be taken for dead, and their runs with them.
        assert "ProtectProc" not in unit.read_text()
    assert setting(DEPLOY / "systemd" / "kinject-daemon.service", "RuntimeMaxSec") == "7d"


def test_the_charts_instance_settings_are_dagsters(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitoring = values["dagsterDaemon"]["runMonitoring"]
    snake = {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in monitoring.items()}
    settings = {**values["additionalInstanceConfig"], "run_monitoring": snake}
    checked = process_config(dagster_instance_config_schema(), settings)
    assert checked.success, checked.errors
    # The same watch over runs as in the settings that kinject writes.
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    own = yaml.safe_load((dagster_home(load_profile("lab")) / "dagster.yaml").read_text())
    for name in ("cancel_timeout_seconds", "poll_interval_seconds"):
        assert snake[name] == own["run_monitoring"][name]
    assert settings["concurrency"]["pools"] == own["concurrency"]["pools"]
    assert set(settings) <= set(own)


def test_the_launcher_of_the_chart_is_ours(values: dict[str, Any]) -> None:
    launcher = values["runLauncher"]["config"]["customRunLauncher"]
    found = importlib.util.find_spec(launcher["module"])
    assert found and found.origin
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    assert launcher["class"] in {n.name for n in tree.body if isinstance(n, ast.ClassDef)}


def test_the_launcher_takes_its_settings(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed (extra `kubernetes`)")
    from kinject_assets.defs.kubernetes import WatchedK8sRunLauncher

    for name in (
        "DAGSTER_HOME",
        "DAGSTER_K8S_INSTANCE_CONFIG_MAP",
        "DAGSTER_K8S_PG_PASSWORD_SECRET",
    ):
        monkeypatch.setenv(name, name.lower())
    config = values["runLauncher"]["config"]["customRunLauncher"]["config"]
    checked = process_config(WatchedK8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors


def test_pods_are_no_root(values: dict[str, Any], ray: dict[str, Any]) -> None:
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    pods = [deployment, values["dagsterWebserver"], values["dagsterDaemon"]]
    contexts = [pod["podSecurityContext"] for pod in pods]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    contexts += [group["template"]["spec"]["securityContext"] for group in groups]
    for context in contexts:
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    containers = [c for g in groups for c in g["template"]["spec"]["containers"]]
    for container in [
        *(pod["securityContext"] for pod in pods),
        *(c["securityContext"] for c in containers),
    ]:
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
    for container in containers:
        assert container["livenessProbe"]
        assert container["readinessProbe"]
        script = container["livenessProbe"]["exec"]["command"][2]
        compile(script, "probe", "exec")


def test_the_documented_cluster_fits_the_ray_cluster(ray: dict[str, Any]) -> None:
    pieces = [yaml.safe_load(piece) for piece in blocks(REPOSITORY / "docs/deployment.md", "yaml")]
    (piece,) = [piece for piece in pieces if "cluster" in piece]
    cluster = Cluster.model_validate(piece["cluster"])
    (group,) = ray["workerGroupSpecs"]
    # Its pods share no folder with the others: the lake is an object store, whose keys they get.
    assert piece["lake"].startswith("s3://")
    for pod in (ray["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "kinject-secrets"}}]
    (node,) = cluster.nodes.values()
    assert group["groupName"] in cluster.nodes
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (node.count, str(int(node.cpus))) == (group["replicas"], limits["cpu"])
    assert str(node.gpus) == limits["nvidia.com/gpu"]
    assert f"{node.memory_gb:.0f}Gi" == limits["memory"]
    for need in (cluster.embed, cluster.train, cluster.score, cluster.triage):
        assert need.gpus <= node.gpus
        assert need.cpus <= node.cpus
        assert set(need.resources) <= set(node.resources)
    assert ray["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"


# -- Linters, where they are installed -------------------------------------------------------------


def lint(*words: str, **variables: str) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint() -> None:
    lint("hadolint", str(DEPLOY / "Dockerfile"))


def test_docker_compose_resolves_the_file() -> None:
    given = {"POSTGRES_PASSWORD": "a", "MINIO_ROOT_PASSWORD": "b", "MINIO_ROOT_USER": "c"}
    lint("docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet", **given)


def test_yamllint() -> None:
    rules = (
        "{extends: default, rules: {line-length: {max: 140}, document-start: disable, "
        "braces: {max-spaces-inside: 0}}}"
    )
    lint("yamllint", "-d", rules, str(DEPLOY))


def test_caddy_validates() -> None:
    sites = {"KINJECT_SITE": "a.localhost", "KINJECT_READ_SITE": "b.localhost"}
    users = {"KINJECT_USER": "a", "KINJECT_READ_USER": "b"}
    # Of the password "secret".
    made = "$2a$14$hRnpGOZVDsQS1bTsFSUa.OoeGrDzRoZTzFW3HVQRiurCbC6LD2UjO"
    hashes = {"KINJECT_HASH": made, "KINJECT_READ_HASH": made}
    file = str(DEPLOY / "caddy" / "Caddyfile")
    lint(
        "caddy", "validate", "--config", file, "--adapter", "caddyfile", **sites, **users, **hashes
    )


def pods() -> Iterator[dict[str, Any]]:
    """The pods that the files for Kubernetes describe, as far as they do."""
    cluster, policy = documents("kubernetes/raycluster.yaml")
    yield policy
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for number, group in enumerate(groups):
        metadata = {"name": f"ray-{number}", **group["template"]["metadata"]}
        spec = group["template"]["spec"]
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    values = documents("kubernetes/dagster-values.yaml")[0]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    parts = [deployment, values["dagsterWebserver"], values["dagsterDaemon"]]
    for number, part in enumerate(parts):
        container = {"name": "part", "image": part["image"]["repository"]}
        container |= {n: part[n] for n in ("env", "volumeMounts", "resources") if n in part}
        container |= {
            name: {k: v for k, v in probe.items() if k != "enabled"} | {"exec": {"command": ["x"]}}
            for name, probe in part.items()
            if name.endswith("Probe")
        }
        spec = {
            "securityContext": part["podSecurityContext"],
            "volumes": part.get("volumes", []),
            "containers": [{**container, "securityContext": part["securityContext"]}],
        }
        metadata = {"name": f"part-{number}"}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_pods_are_kubernetes(tmp_path: Path) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text(yaml.safe_dump_all(pods()))
    lint("kubernetes-validate", "--strict", str(file))


def test_systemd_verifies(tmp_path: Path) -> None:
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, "/bin/true"))
    lint("systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS))
