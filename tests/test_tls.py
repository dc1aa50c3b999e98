"""A Dask cluster that speaks TLS alone: with certificates made here, by flags and by Dask's own configuration."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dask_processes import dask_cluster
from tests.small_corpora import ROOT, generated_texts, run_command, write_corpus


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Path:
    """What deploy/local/certificates.sh makes, and the key of another certificate, other.pem."""
    folder: Path = tmp_path_factory.mktemp("tls")
    subprocess.run([ROOT / "deploy/local/certificates.sh", folder, "2"], check=True, capture_output=True)
    other = ["openssl", "genrsa", "-out", folder / "other.pem", "2048"]
    subprocess.run(other, check=True, capture_output=True)
    return folder


def configuration(pem: Path) -> dict[str, str]:
    """Dask's own, as environment."""
    prefix = "DASK_DISTRIBUTED__COMM__"
    found = {f"{prefix}REQUIRE_ENCRYPTION": "true", f"{prefix}TLS__CA_FILE": str(pem / "ca.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found[f"{prefix}TLS__{role}__CERT"] = str(pem / "cert.pem")
        found[f"{prefix}TLS__{role}__KEY"] = str(pem / "key.pem")
    return found


def flags(ca: Path, cert: Path, key: Path) -> tuple[Any, ...]:
    return "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key


def address_of(file: Path) -> str:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)  # it is being written
    address: str = json.loads(file.read_text())["address"]
    return address


@pytest.mark.slow
def test_a_cluster_with_tls(tmp_path, pem):
    corpus = write_corpus(tmp_path / "c", generated_texts(200), 2)
    known = configuration(pem)
    own = flags(pem / "ca.pem", pem / "cert.pem", pem / "key.pem")
    with dask_cluster(tmp_path, "--protocol", "tls", scheduler_options=("--protocol", "tls"), **known) as (
        file,
        processes,
    ):
        address = address_of(file)
        assert address.startswith("tls://")

        def fit(name: str, *more: Any, **variables: str) -> Any:
            arguments = ("fit", "--input", corpus, "--output", tmp_path / name, "-k", 4, "--scheduler")
            return run_command(*arguments, *more, **variables)

        for done in (fit("by-flags", address, *own), fit("by-configuration", file, **known)):
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
        weights = (
            "transform",
            "--model",
            tmp_path / "by-flags",
            "--input",
            corpus,
            "--output",
            tmp_path / "w",
        )
        done = run_command(*weights, "--scheduler", address, *own)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert (tmp_path / "w" / "_SUCCESS").exists()
        for name, where in (("plain", address), ("tcp", address.replace("tls://", "tcp://"))):
            begun = time.monotonic()
            refused = fit(name, where)
            assert refused.returncode in (2, 75), refused.stderr
            assert "TLS" in refused.stderr
            assert "Traceback" not in refused.stderr
            assert time.monotonic() - begun < 60
        assert processes[0].poll() is None
        for wrong in ("nowhere.pem", "other.pem"):
            refused = fit("wrong", address, *flags(pem / "ca.pem", pem / "cert.pem", pem / wrong))
            assert refused.returncode == 2, refused.stderr
            assert wrong in refused.stderr
            assert "Traceback" not in refused.stderr
