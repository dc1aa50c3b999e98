"""deploy/kubernetes: by the schemas of Kubernetes and of the Dask operator, and its containers run as processes."""

import copy
import math
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nmf_dask.cli.termination import LAST_SECONDS
from nmf_dask.config import Settings
from nmf_dask.jobfile import read_job_file, resolve
from nmf_dask.pipeline.planning import expected_memory
from tests.faulty_command import Driver, checkpoints, slow_pass
from tests.kubernetes_pods import Pod, commands, documents, expanded, of_kind, quantity, until
from tests.servers import free_port
from tests.small_corpora import files_of, generated_texts, wh_bytes, write_corpus

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed"
)
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

VERSIONS = ("1.31", "1.34", "1.37")  # the first that the CronJob is for, one between, the newest
MANIFESTS = ("cronjob.yaml", "daskjob.yaml")
NAMESPACE = "topics"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def operator() -> Any:
    name = "dask_kubernetes.operator.controller.controller"
    return pytest.importorskip(name, reason="dask-kubernetes is not installed")


def strict(schema: Any) -> Any:
    """The schema of a CRD with every key refused that it does not name: the API server drops those in silence."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    return made


@pytest.fixture(scope="module")
def crd(operator) -> Callable[[Object], None]:
    """Validates a DaskJob or a DaskCluster by the definition in the operator's package."""
    import dask_kubernetes.operator

    folder = Path(dask_kubernetes.operator.__file__).parent / "deployment/helm/dask-kubernetes-operator/crds"
    schemas = {}
    for kind in ("DaskJob", "DaskCluster", "DaskWorkerGroup"):
        definition = yaml.load((folder / f"{kind.lower()}.yaml").read_text("utf-8"), yaml.CSafeLoader)
        [version] = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
        whole = version["schema"]["openAPIV3Schema"]
        whole["type"] = "object"
        whole["properties"] |= {
            "apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {"const": kind}, "metadata": {"type": "object"},
        }  # fmt: skip
        schemas[kind] = strict(whole)

    def check(found: Object) -> None:
        jsonschema.Draft202012Validator(schemas[found["kind"]]).validate(found)

    return check


def check(found: Object, version: str) -> None:
    """Raises for a key that is unknown, too, and for a kind that is: the command exits 0 for that."""
    kubernetes_validate.validate(found, version, strict=True)


REFUSED = (
    jsonschema.ValidationError,
    kubernetes_validate.ValidationError,
    kubernetes_validate.SchemaNotFoundError,
)


def pod_specs(name: str) -> Iterator[tuple[str, Object, Object]]:
    """(what it is, labels, spec) of every pod that a manifest makes."""
    objects = documents(name)
    if name == "cronjob.yaml":
        template = of_kind(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
        yield "pod", template["metadata"]["labels"], template["spec"]
    else:
        spec = of_kind(objects, "DaskJob")["spec"]
        labels = {"dask.org/cluster-name": of_kind(objects, "DaskJob")["metadata"]["name"]}
        yield "job", labels, spec["job"]["spec"]
        yield "scheduler", labels, spec["cluster"]["spec"]["scheduler"]["spec"]
        yield "worker", labels, spec["cluster"]["spec"]["worker"]["spec"]


def pod_named(manifest: str, wanted: str) -> Object:
    return next(spec for what, _, spec in pod_specs(manifest) if what == wanted)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_schemas_of_kubernetes(name, version):
    for found in documents(name):
        if found["kind"] != "DaskJob":
            check(found, version)
    for what, labels, spec in pod_specs(name):
        check(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": what, "labels": labels}, "spec": spec},
            version,
        )


def test_schema_of_the_operator(crd):
    crd(of_kind(documents("daskjob.yaml"), "DaskJob"))


POD = ("spec", "jobTemplate", "spec", "template", "spec")


@pytest.mark.parametrize(
    ("path", "value", "version"),
    [
        ((*POD, "terminationGracePeriodSecond"), 30, "1.37"),
        ((*POD, "terminationGracePeriodSeconds"), "half a minute", "1.37"),
        ((*POD, "containers", 0, "resources", "limit"), {"cpu": "1"}, "1.37"),
        ((*POD, "containers", 0, "securityContext", "readOnlyRootFileSystem"), True, "1.37"),
        ((*POD, "containers", 0, "env", 0, "valueFrom", "fieldref"), {"fieldPath": "status.podIP"}, "1.37"),
        (("spec", "jobTemplate", "spec", "completionmode"), "Indexed", "1.37"),
        (
            ("spec", "jobTemplate", "spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"),
            ["2"],
            "1.37",
        ),
        (("spec", "schedule"), None, "1.37"),
        (("kind",), "CornJob", "1.37"),
        (("apiVersion",), "batch/v1beta1", "1.37"),
        ((), None, "1.29"),  # knows no successPolicy: the job would never end
    ],
    ids=str,
)
def test_the_schemas_of_kubernetes_refuse(path, value, version):
    found = of_kind(documents("cronjob.yaml"), "CronJob")
    put(found, path, value)
    with pytest.raises(REFUSED):
        check(found, version)


JOB = ("spec", "job", "spec", "containers", 0)
WORKER = ("spec", "cluster", "spec", "worker")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*JOB, "resource"), {"limits": {"cpu": "1"}}),
        ((*JOB, "env", 0, "valueFrom", "fieldRef", "path"), "status.podIP"),
        ((*WORKER, "replica"), 4),
        ((*WORKER, "replicas"), "four"),
        ((*WORKER, "spec", "containers", 0, "readinessProbe", "httpget"), {"path": "/health"}),
        (("spec", "cluster", "spec", "schedular"), {}),
        (("spec", "cluster", "spec", "scheduler", "service", "ports", 0, "port"), "8786"),
        (("kind",), "DaskJobs"),
    ],
    ids=str,
)
def test_the_schema_of_the_operator_refuses(crd, path, value):
    found = of_kind(documents("daskjob.yaml"), "DaskJob")
    put(found, path, value)
    with pytest.raises((*REFUSED, KeyError)):
        crd(found)


def put(found: Object, path: tuple[Any, ...], value: Any) -> None:
    """Change one value, without the aliases of the file; None removes it."""
    whole = copy.deepcopy(found)
    found.clear()
    found.update(yaml.safe_load(yaml.dump(whole, Dumper=_Plain)))
    if not path:
        return
    for key in path[:-1]:
        found = found[key]
    if value is None:
        del found[path[-1]]
    else:
        found[path[-1]] = value


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_may_do_little(name):
    """What the restricted Pod Security Standard asks for, and limits, and time for a checkpoint."""
    objects = documents(name)
    account = of_kind(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    policy = of_kind(objects, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for what, labels, spec in pod_specs(name):
        assert policy["podSelector"]["matchLabels"].items() <= labels.items(), what
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        assert spec["terminationGracePeriodSeconds"] >= 2 * LAST_SECONDS
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert [volume["name"] for volume in spec["volumes"] if "emptyDir" in volume] == ["tmp"]
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() == {"cpu", "memory", "ephemeral-storage"}, what
        # The dashboard of a worker is where its probe looks; a runner of the operator has none.
        assert ("readinessProbe" in container) is (what != "job")


def test_names_lead_to_each_other():
    """What no schema sees and the API server or nobody would tell."""
    objects = documents("cronjob.yaml")
    cronjob, service = of_kind(objects, "CronJob")["spec"], of_kind(objects, "Service")
    job = cronjob["jobTemplate"]["spec"]
    _, labels, pod = next(pod_specs("cronjob.yaml"))
    assert cronjob["concurrencyPolicy"] == "Forbid"
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] >= 2
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= labels.items()
    [codes, disruption] = job["podFailurePolicy"]["rules"]
    assert (codes["action"], codes["onExitCodes"]["values"]) == ("FailJob", [2, 65])
    assert codes["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert (disruption["action"], disruption["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    objects = documents("daskjob.yaml")
    found = of_kind(objects, "DaskJob")
    selector = found["spec"]["cluster"]["spec"]["scheduler"]["service"]["selector"]
    assert selector == {"dask.org/cluster-name": found["metadata"]["name"], "dask.org/component": "scheduler"}
    for name in MANIFESTS:
        known = {one["metadata"]["name"] for one in documents(name) if one["kind"] == "ConfigMap"}
        for _, _, spec in pod_specs(name):
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            assert volumes["job"]["configMap"]["name"] in known
            assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)


@pytest.mark.parametrize("name", MANIFESTS)
def test_three_lines_to_change(name, tmp_path):
    from tests.kubernetes_pods import KUBERNETES

    text = (KUBERNETES / name).read_text("utf-8")
    marked = [line.split("#")[0].strip() for line in text.splitlines() if line.endswith("# <--")]
    assert [re.split("[:=]", line)[0].strip() for line in marked] == [
        "input",
        "output",
        marked[2].split(":")[0],
    ]
    assert "registry.example.com/nmf-dask:" in marked[2]
    assert text.count("registry.example.com") == 1
    job_file = tmp_path / "job.toml"
    job_file.write_text(of_kind(documents(name), "ConfigMap")["data"]["job.toml"])
    assert resolve(read_job_file(str(job_file))).settings.output.output == "s3://bucket/model"


def test_limits_hold_the_plan(tmp_path):
    """As deploy/kubernetes/README.md says: for 10 GB of text in 5 million documents and 20 topics."""
    job_file = tmp_path / "job.toml"
    for name, driver, worker in (("cronjob.yaml", "pod", "pod"), ("daskjob.yaml", "job", "worker")):
        job_file.write_text(of_kind(documents(name), "ConfigMap")["data"]["job.toml"])
        settings: Settings = resolve(read_job_file(str(job_file))).settings
        limits = pod_named(name, worker)["containers"][0]["resources"]["limits"]
        needed = expected_memory(
            text_bytes=10**10, partition_bytes=settings.corpus.partition_bytes, n_rows=5_000_000,
            threads=math.ceil(quantity(limits["cpu"])), vectorizer=settings.vectorizer, model=settings.model,
            in_process=False,
        )  # fmt: skip
        assert needed.worker <= 0.9 * quantity(limits["memory"])
        scheduler = 256 * 2**20
        limits = pod_named(name, driver)["containers"][0]["resources"]["limits"]
        assert needed.driver + scheduler <= 0.9 * quantity(limits["memory"])


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("tcp://$(A)-0.nmf-dask:8786", "tcp://one-0.nmf-dask:8786"),
        ("$(B) $$(A) $A ${A} $", "$(B) $(A) $A ${A} $"),
        ("$((MEMORY / 10 * 9))", "$((MEMORY / 10 * 9))"),
    ],
)
def test_expansion_is_that_of_kubernetes(text, made):
    assert expanded(text, {"A": "one"}) == made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(800), 3)


PASSES = 40
MORE = """
[run]
checkpoint_every = 5
"""


def write_job(folder: Path, name: str, corpus: object, model: object, more: str = MORE) -> Path:
    """The job file of a manifest, its two lines changed as a user would, and made small."""
    text: str = of_kind(documents(name), "ConfigMap")["data"]["job.toml"]
    text = text.replace("s3://bucket/corpus", str(corpus)).replace("s3://bucket/model", str(model))
    small = f'n_components = 5\nbeta_loss = "kullback-leibler"\ntol = 0.0\nmax_iter = {PASSES}'
    text = text.replace("n_components = 20", small)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.toml").write_text(text + more)
    return folder


class IndexedJob:
    """The Job that the CronJob makes, by hand."""

    def __init__(self, folder: Path, nmf_dask: str = "tests.faulty_command many") -> None:
        self.spec = of_kind(documents("cronjob.yaml"), "CronJob")["spec"]["jobTemplate"]["spec"]
        self.pod = self.spec["template"]["spec"]
        self.folder, self.name, self.port = folder, "nmf-dask-29401950", str(free_port())
        self.path = commands(folder / "bin", nmf_dask)
        self.pods: list[Pod] = []

    def start(self, index: int, **more: str) -> Pod:
        """A pod of that index, of which Kubernetes sets JOB_COMPLETION_INDEX and the name in DNS."""
        fields = {"metadata.labels['batch.kubernetes.io/job-name']": self.name}
        host = f"{self.name}-0.{self.pod['subdomain']}"
        pod = Pod(
            self.pod["containers"][0], self.folder, self.path, fields=fields,
            given={"JOB_COMPLETION_INDEX": str(index)}, replaced={host: "127.0.0.1", "8786": self.port}, **more,
        )  # fmt: skip
        self.pods.append(pod)
        return pod

    def verdict(self, code: int) -> str:
        """What the Job does with a pod that ended so."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count" if code else "Complete"

    def close(self) -> None:
        for pod in self.pods:
            pod.kill()


@pytest.fixture
def job_of(tmp_path) -> Iterator[Callable[..., IndexedJob]]:
    made: list[IndexedJob] = []

    def make(*arguments: Any) -> IndexedJob:
        made.append(IndexedJob(tmp_path / "job", *arguments))
        return made[-1]

    yield make
    for job in made:
        job.close()


def answers(pod: Pod, container: Object) -> bool:
    """Whether the readiness probe of a container would find it well."""
    probe = container["readinessProbe"]["httpGet"]
    [port] = [port["containerPort"] for port in container["ports"] if port["name"] == probe["port"]]
    assert port == 8787
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{pod.health}{probe['path']}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_the_indexed_job(tmp_path, corpus, job_of):
    """Workers first, a drained node, a scheduler that dies: the same bytes as without any of it."""
    write_job(tmp_path / "job", "cronjob.yaml", corpus, tmp_path / "m")
    job = job_of()
    grace = job.pod["terminationGracePeriodSeconds"]
    is_slow, slow = slow_pass(tmp_path)
    workers = [job.start(index, **slow) for index in (1, 2)]
    driver = job.start(0, **slow)
    until(is_slow)
    assert all(until(lambda pod=pod: answers(pod, job.pod["containers"][0])) for pod in (driver, *workers))
    assert driver.terminated(grace) == 75, driver.text()
    saved = checkpoints(tmp_path / "m")
    assert saved
    (tmp_path / "slow").unlink()

    driver = job.start(0)
    until(lambda: checkpoints(tmp_path / "m")[-1:] > saved[-1:])
    os.kill(driver.child("dask scheduler"), 9)
    assert job.verdict(driver.ended()) == "Count", driver.text()
    assert "going on from checkpoint" in driver.text()
    saved = checkpoints(tmp_path / "m")
    assert saved[-1] < f"pass-{PASSES:05d}"

    driver = job.start(0)
    assert job.verdict(driver.ended()) == "Complete", driver.text()
    assert f"going on from checkpoint {saved[-1]}" in driver.text()
    assert [pod.process.poll() for pod in workers] == [None, None]
    # The job is done by its index 0, and Kubernetes ends the others. One that a drained node ends is not done.
    assert [job.verdict(pod.terminated(grace)) for pod in workers] == ["Count", "Count"]
    for pod in job.pods[2:]:  # a worker of Dask that loses its scheduler ends with one
        # The driver's lines: the scheduler beside it tells of a client that went in the middle of a message.
        assert "Traceback" not in "".join(line for line in pod.text().splitlines() if line.startswith("{"))

    write_job(tmp_path / "undisturbed", "cronjob.yaml", corpus, tmp_path / "expected")
    Driver("many", "fit", tmp_path / "undisturbed" / "job.toml").done()
    assert wh_bytes(_run(tmp_path / "m")) == wh_bytes(_run(tmp_path / "expected"))


def _run(model: Path) -> Path:
    [run] = (model / "runs").iterdir()
    return run


@pytest.mark.parametrize(
    ("more", "corpus_name", "code"),
    [("[modle]\nk = 5\n", "", 2), ("", "nowhere", 65)],
    ids=["configuration", "input"],
)
def test_what_ends_the_indexed_job(tmp_path, corpus, job_of, more, corpus_name, code):
    write_job(tmp_path / "job", "cronjob.yaml", corpus / corpus_name, tmp_path / "m", more)
    job = job_of("nmf_dask")
    ended = job.start(0).ended()
    assert (ended, job.verdict(ended)) == (code, "FailJob")


@pytest.fixture
def dask_job(operator, crd) -> dict[str, Object]:
    """What the operator makes of the DaskJob, by its own functions: the objects, by the component of Dask."""
    found = of_kind(documents("daskjob.yaml"), "DaskJob")
    name, spec = found["metadata"]["name"], found["spec"]
    cluster = operator.build_cluster_spec(
        name, spec["cluster"]["spec"]["worker"], spec["cluster"]["spec"]["scheduler"], {}, {}
    )
    crd(cluster)
    scheduler, worker = cluster["spec"]["scheduler"], cluster["spec"]["worker"]
    group = operator.build_default_worker_group_spec(name, worker, {}, {})
    crd(group)
    return {
        "scheduler": operator.build_scheduler_deployment_spec(name, scheduler["spec"], {}, {}),
        "service": operator.build_scheduler_service_spec(name, scheduler["service"], {}, {}),
        "worker": operator.build_worker_deployment_spec(
            group["metadata"]["name"], NAMESPACE, name, "0123456789", group["spec"]["worker"]["spec"], {}, {}
        ),
        "job": operator.build_job_pod_spec(name, name, NAMESPACE, spec["job"]["spec"], {}, {}),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_operator_makes_is_valid(dask_job, version):
    for found in dask_job.values():
        check(found, version)
    labels = dask_job["scheduler"]["spec"]["template"]["metadata"]["labels"]
    assert dask_job["service"]["spec"]["selector"].items() <= labels.items()


@pytest.mark.slow
def test_the_dask_job(tmp_path, corpus, dask_job, empty_bucket):
    """On S3 with keys from the Secret, and a scheduler that dies: the runner goes on in the same pod."""
    bucket = empty_bucket("daskjob")
    for file, content in files_of(corpus).items():
        with bucket.open_output_stream(f"daskjob/corpus/{file}") as out:
            out.write(content)
    secret = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    write_job(tmp_path / "job", "daskjob.yaml", "s3://daskjob/corpus", "s3://daskjob/model")
    path, port = commands(tmp_path / "bin", "tests.faulty_command many"), str(free_port())
    host = f"{dask_job['service']['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
    pods: list[Pod] = []

    is_slow, slow = slow_pass(tmp_path)

    def start(component: str, **more: str) -> Pod:
        found = dask_job[component]
        spec = found["spec"] if component == "job" else found["spec"]["template"]["spec"]
        pods.append(
            Pod(
                spec["containers"][0],
                tmp_path / "job",
                path,
                secrets={"nmf-dask-s3": secret},
                replaced={host: "127.0.0.1", "8786": port},
                AWS_EC2_METADATA_DISABLED="true",
                **more,
            )
        )
        return pods[-1]

    try:
        runner, scheduler, worker = start("job", **slow), start("scheduler"), start("worker", **slow)
        until(is_slow)  # the pass after the first checkpoint: the job is not done before its scheduler dies
        assert _stored(bucket, "state.json")
        for pod, component in ((scheduler, "scheduler"), (worker, "worker")):
            container = dask_job[component]["spec"]["template"]["spec"]["containers"][0]
            assert until(lambda pod=pod, container=container: answers(pod, container))
        scheduler.kill()
        (tmp_path / "slow").unlink()
        worker.ended()  # for want of a scheduler; its Deployment, too, starts another
        scheduler, worker = start("scheduler"), start("worker")
        assert runner.ended(90) == 0, runner.text()
        assert "run the same command again" in runner.text()
        assert "going on from checkpoint" in runner.text()
        assert not any(secret["AWS_SECRET_ACCESS_KEY"] in pod.text() for pod in pods)
    finally:
        for pod in pods:
            pod.kill()
    assert len(_stored(bucket, "_SUCCESS")) == 1


def _stored(bucket: Any, word: str) -> list[str]:
    from pyarrow.fs import FileSelector

    found = bucket.get_file_info(FileSelector("daskjob/model", recursive=True, allow_not_found=True))
    return [one.path for one in found if word in one.path]
