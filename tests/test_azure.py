"""Whole commands over Azure Blob Storage: Azurite on the loopback, keys in the environment alone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from nmf_dask import TopicModel, fit, transform
from nmf_dask.corpus.locations import connect
from nmf_dask.errors import ConfigurationError, InputDataError, RetryableError
from nmf_dask.store import Folder, lock
from nmf_dask.store.folder import _file_system
from tests.object_store_proxy import Answer, every_third, store_proxy
from tests.servers import free_port, serving
from tests.small_corpora import generated_texts, matrix_of, settings_of, wh_bytes, write_corpus

ACCOUNT = "devstoreaccount1"
# Azurite's own, which its documentation tells everybody.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """host:port of an Azurite that keeps what it is given in memory."""
    server = shutil.which("azurite-blob")
    if server is None:
        pytest.skip("azurite-blob is not installed: npm install, by tests/azurite/package.json")
    port = free_port()
    with serving(
        server, "--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck",
        "--blobHost", "127.0.0.1", "--blobPort", str(port), port=port,
    ):  # fmt: skip
        yield f"127.0.0.1:{port}"


@pytest.fixture
def service(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {
        "AZURE_STORAGE_ACCOUNT": ACCOUNT,
        "AZURE_STORAGE_KEY": KEY,
        "AZURE_STORAGE_SERVICE_ENDPOINT": f"http://{address}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    forget()
    yield address
    forget()


def forget() -> None:
    connect.cache_clear()
    _file_system.cache_clear()


@pytest.fixture
def container(service: str) -> pafs.FileSystem:
    """A container named box."""
    store = pafs.AzureFileSystem(
        ACCOUNT, account_key=KEY, blob_storage_authority=service, blob_storage_scheme="http",
        dfs_storage_authority=service, dfs_storage_scheme="http",
    )  # fmt: skip
    store.create_dir("box")
    return store


@pytest.mark.parametrize(
    "spelling", ["abfs://box", f"abfs://{ACCOUNT}@{{address}}/box"], ids=["short", "address"]
)
def test_what_is_made_there_is_what_is_made_on_disk(
    container: pafs.FileSystem, service: str, tmp_path: Path, spelling: str
) -> None:
    corpus = write_corpus(tmp_path / "c", generated_texts(120), 3)
    pafs.copy_files(str(corpus), "box/corpus", destination_filesystem=container)
    place = spelling.format(address=service)
    if "@" in place:
        place, options = f"{place}/long", "?enable_tls=false"
        pafs.copy_files(str(corpus), "box/long/corpus", destination_filesystem=container)
    else:
        options = ""
    model = {"n_components": 4, "max_iter": 5}

    def uri(name: str) -> str:
        return f"{place}/{name}{options}"

    run = fit(settings_of(uri("corpus"), uri("m"), model=model, run={"scratch": uri("scratch")}))
    new_only = {"model": uri("m"), "new_only": True}
    again = settings_of(uri("corpus"), uri("w"), model=model, transform=new_only)
    assert transform(again).told["files_new"] == 3
    assert transform(again).told["files_new"] == 0

    here = fit(settings_of(corpus, tmp_path / "m", model=model))
    local = {"model": str(tmp_path / "m")}
    transform(settings_of(corpus, tmp_path / "w", model=model, transform=local))
    assert str(TopicModel.load(uri("m")).topics()) == str(TopicModel.load(tmp_path / "m").topics())
    made = tmp_path / "made"
    for name in ("m", "w"):
        (made / name).mkdir(parents=True)
        source = "box/long" if options else "box"
        pafs.copy_files(f"{source}/{name}", str(made / name), source_filesystem=container)
    [theirs] = (made / "m" / "runs").iterdir()
    assert wh_bytes(theirs) == wh_bytes(here.uri)
    assert run.run_id == here.run_id
    parts = [[matrix_of(part).tobytes() for part in sorted((folder / "W").iterdir())]
             for folder in (made / "w", tmp_path / "w")]  # fmt: skip
    assert parts[0] == parts[1]
    assert Folder(uri("scratch")).list() == ()
    for file in made.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_what_is_wrong_is_said(
    container: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "c", generated_texts(40))
    for given, said in (
        ((("abfs://no-box/x"), tmp_path / "m"), "abfs://no-box/x: there is no bucket no-box"),
        ((corpus, "abfs://no-box/m"), "abfs://no-box/m.*: there is no bucket no-box"),
        ((("abfs://box/x"), tmp_path / "m"), "abfs://box/x does not exist"),
    ):
        with pytest.raises(InputDataError, match=said):
            fit(settings_of(*given))
    other = KEY[:-4] + "GGG="
    monkeypatch.setenv("AZURE_STORAGE_KEY", other)
    for given in (("abfs://box/x", tmp_path / "m"), (corpus, "abfs://box/m")):
        forget()
        with pytest.raises(
            InputDataError, match=r"does not accept the credentials.*AZURE_STORAGE_KEY"
        ) as caught:
            fit(settings_of(*given))
        assert other not in str(caught.value)
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    forget()
    with pytest.raises(InputDataError, match="does not accept the credentials"):
        fit(settings_of("abfs://box/x", tmp_path / "m"))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")
    forget()
    with pytest.raises(
        ConfigurationError, match=re.escape("abfs://box names no storage account: set AZURE_STORAGE")
    ):
        fit(settings_of("abfs://box/x", tmp_path / "m"))


def test_an_answer_that_is_cut_off_hides_no_missing_container(
    container: pafs.FileSystem, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azurite refuses a write before it has read it: that a container is missing is then asked for itself."""
    refused = Answer(404, "ContainerNotFound", cut_off=True)
    with store_proxy(f"http://{service}") as proxy:
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", proxy.url)
        forget()
        with proxy.answering(lambda method, path, query: refused if method == "PUT" else None):
            with pytest.raises(InputDataError, match="abfs://no-box/m/file: there is no bucket no-box"):
                Folder("abfs://no-box/m/file").write_bytes(b"one")
            with pytest.raises(RetryableError, match="cannot write abfs://box/cut/file"):
                Folder("abfs://box/cut/file").write_bytes(b"one")
    assert Folder("abfs://box/cut").list() == ()


def test_every_third_request_fails_and_is_made_again(
    container: pafs.FileSystem, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client's own retries; they wait for most of a second, so there are few of them here."""
    with store_proxy(f"http://{service}") as proxy:
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", proxy.url)
        forget()
        folder = Folder("abfs://box/third")
        with proxy.answering(every_third(Answer(503, "ServerBusy"))):
            for number in range(2):
                (folder / f"{number}").write_bytes(b"x" * number)
            assert folder.list() == ("0", "1")
            assert (folder / "1").read_bytes() == b"x"
        statuses = [one.status for one in proxy.taken()]
        assert statuses.count(503) == len(statuses) // 3 > 0
