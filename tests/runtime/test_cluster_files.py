"""The files in `cluster/` are what Ray, KubeRay and this package understand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scarcity_ray import RuntimeConfig
from scarcity_ray.config import load
from scarcity_ray.workloads.config import load_job

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = Path(__file__).parent / "kuberay" / "v1.json"


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


@pytest.fixture
def machines() -> Any:
    return read("machines.yaml")


def test_ray_accepts_the_file(machines: Any) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(machines)
    util.validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(machines["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_clouds_file_keeps_to_rays_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    autoscaler = pytest.importorskip("ray.autoscaler")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    content = read(name)
    jsonschema.validate(content, schema)
    assert content["head_node_type"] in content["available_node_types"]
    (workers,) = content["available_node_types"].keys() - {content["head_node_type"]}
    assert content["available_node_types"][workers]["min_workers"] > 0, "baskets do not move by themselves"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "max_wrokers": 1}, schema)


@pytest.mark.parametrize("name", ["machines.yaml", "aws.yaml", "gcp.yaml"])
def test_every_machine_asks_for_the_token_and_sends_no_statistics(name: str) -> None:
    content = read(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = content[key][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][-1]


def strict(schema: Any) -> Any:
    """The schema, with what it does not know refused; Kubernetes itself drops that without a word."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(each) for name, each in schema.items()}
    if isinstance(made.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in made:
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def kuberay() -> Any:
    return strict(json.loads(KUBERAY.read_text(encoding="utf-8")))


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTER / "kubernetes" / name).read_text(encoding="utf-8")))


def checked(kuberay: Any, which: str, spec: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = {**kuberay[which], "$defs": kuberay["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(spec)


def test_kuberay_accepts_the_cluster_and_the_job(kuberay: Any) -> None:
    (cluster,) = [each for each in documents("cluster.yaml") if each["kind"] == "RayCluster"]
    (job,) = documents("job.yaml")
    assert cluster["apiVersion"] == job["apiVersion"] == "ray.io/v1"
    checked(kuberay, "cluster", cluster["spec"])
    checked(kuberay, "job", job["spec"])
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    jsonschema = pytest.importorskip("jsonschema")
    for wrong in ({"authOptoins": {}}, {"workerGroupSpecs": [{"groupName": "a"}]}, {"rayVersion": 2.6}):
        with pytest.raises(jsonschema.ValidationError):
            checked(kuberay, "cluster", {**cluster["spec"], **wrong})


def test_what_a_pod_mounts_is_there_and_the_service_finds_the_gateways() -> None:
    made = documents("cluster.yaml")
    (cluster,) = [each for each in made if each["kind"] == "RayCluster"]
    claims = {each["metadata"]["name"] for each in made if each["kind"] == "PersistentVolumeClaim"}
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        containers = [*pod["containers"], *pod["initContainers"]]
        assert {m["name"] for each in containers for m in each["volumeMounts"]} == set(volumes)
        asked = {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        }
        assert asked <= claims
        assert "ledger" not in volumes or group is groups[0], "the ledger is the head's alone"
        (ray,) = pod["containers"]
        (service,) = [each for each in made if each["kind"] == "Service"]
        assert service["spec"]["ports"][0]["targetPort"] in {port["containerPort"] for port in ray["ports"]}
    assert service["spec"]["selector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_compose_and_dockerfile_agree_and_the_job_of_the_sites_loads() -> None:
    compose, stages = (
        read("compose.yaml"),
        set(re.findall(r"^FROM \S+ AS (\w+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)),
    )
    for name, service in compose["services"].items():
        assert service["build"]["target"] in stages, name
        assert (CLUSTER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert source in compose["volumes"] or (CLUSTER / source).is_file(), mount
        assert set(service.get("depends_on", {})) <= set(compose["services"])
    job = load_job(CLUSTER / "home" / "job.yaml")
    sites = {client.client_id for client in job.clients}
    assert sites == {
        name for name, service in compose["services"].items() if service["image"].endswith("-site")
    }
    kits = compose["services"]["kits"]["command"][-1]
    assert f"for site in {' '.join(sorted(sites))};" in kits
    assert job.basket_sizes == (1, 1, 1)


def test_images_are_named_without_a_registry() -> None:
    text = "".join(path.read_text() for path in [*CLUSTER.rglob("*.yaml"), CLUSTER / "Dockerfile"])
    images = re.findall(r"(?:image:|FROM|-t) +([\w./:-]+)", text)
    assert images
    assert all("." not in image.partition("/")[0].partition(":")[0] for image in images if "/" in image)


def test_the_settings_that_the_page_shows_are_accepted() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown = load(RuntimeConfig, yaml.safe_load(block)["federation"]["runtime"])
    assert shown.baskets_per_actor == 4
