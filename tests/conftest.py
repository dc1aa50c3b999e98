"""The order of the tests, and a server that more than one file of them speaks to."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from tests.servers import free_port, serving

# Files that take minutes, so that no process is left alone with one of them at the end.
FIRST = (
    "test_faults_workers", "test_faults_memory", "test_faults_driver", "test_pipeline_clusters", "test_update_faults",
    "test_benchmarks", "test_faults_signals", "test_fuzz_input", "test_deploy_slurm", "test_deploy_image",
    "test_select",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


@pytest.fixture
def empty_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pafs.FileSystem]:
    """Makes a bucket of that name, or empties it; this process and those it starts reach it by their environment."""
    for key, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)

    def made(name: str) -> pafs.FileSystem:
        store, _ = pafs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")
        store.create_dir(name)
        store.delete_dir_contents(name, missing_dir_ok=True)
        return store

    return made


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server on this machine: moto."""
    server = shutil.which("moto_server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if server is None:
        pytest.skip("moto[server] is not installed")
    port = free_port()
    with serving(server, "-H", "127.0.0.1", "-p", str(port), port=port):
        yield f"http://127.0.0.1:{port}"
