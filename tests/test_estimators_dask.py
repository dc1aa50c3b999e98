"""`NMF` of Dask arrays: on no client and on one, of dense and sparse chunks, with known and unknown rows."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from distributed import Client, LocalCluster

from nmf_dask import NMF
from nmf_dask.estimators import on_dask
from tests.matrices import text_like

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", memory_limit="2GiB"
    ) as cluster:
        yield cluster


@pytest.fixture(params=["no client", "a client"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "no client":
        yield None
        return
    with Client(request.getfixturevalue("cluster")) as client:
        yield client


X = text_like(2400, 300, 5, 1)
PARAMETERS: dict[str, Any] = {"n_components": 5, "random_state": 0, "max_iter": 40}


def of_chunks(chunks: list[Any], known: bool = True) -> Any:
    arrays = [
        da.from_delayed(
            dask.delayed(chunk, traverse=False), (chunk.shape[0] if known else np.nan, 300), chunk.dtype
        )
        for chunk in chunks
    ]
    return da.concatenate(arrays, allow_unknown_chunksizes=True)


CHUNKS = [X[:700], X[700:701], X[701:1500], X[1500:]]
FORMS = {
    "dense": lambda: da.from_array(X.toarray(), chunks=(700, 300)),
    "dense, cut columns": lambda: da.from_array(X.toarray(), chunks=(900, 100)),
    "sparse arrays": lambda: of_chunks(CHUNKS),
    "sparse matrices": lambda: of_chunks([sp.csr_matrix(one) for one in CHUNKS]),
    "unknown rows": lambda: of_chunks(CHUNKS, known=False),
    "some csc, some dense, some empty": lambda: of_chunks(
        [CHUNKS[0].tocsc(), CHUNKS[1].toarray(), X[:0], X[:0].toarray(), CHUNKS[2], CHUNKS[3]], known=False
    ),
    "of the package sparse": lambda: of_chunks([Sparse(one) for one in CHUNKS]),
}


class Sparse:
    """What a COO of the package sparse has: its way to SciPy."""

    def __init__(self, X: sp.csr_array) -> None:
        self.X, self.shape, self.ndim, self.dtype = X, X.shape, 2, X.dtype

    def to_scipy_sparse(self) -> sp.coo_array:
        return self.X.tocoo()


@pytest.fixture(scope="module")
def err() -> float:
    return float(NMF(**PARAMETERS).fit(X).reconstruction_err_)


@pytest.mark.parametrize("form", FORMS)
def test_a_dask_array_is_fitted_as_one_matrix(form: str, client: Any, err: float) -> None:
    model = NMF(**PARAMETERS)
    W = model.fit_transform(FORMS[form]())
    assert isinstance(W, da.Array)
    assert isinstance(model.components_, np.ndarray)
    assert model.components_.dtype == W.dtype == X.dtype
    assert model.reconstruction_err_ == pytest.approx(err, rel=0.005)
    values = W.compute()
    assert values.shape == (2400, 5)
    np.testing.assert_allclose(values, model.transform(X), rtol=1e-6, atol=1e-9)
    exact = np.linalg.norm(X.toarray() - values @ model.components_)
    assert 0.99 * model.reconstruction_err_ <= exact <= 1.0001 * model.reconstruction_err_
    np.testing.assert_allclose(model.inverse_transform(W).compute(), values @ model.components_)


@pytest.mark.parametrize("loss", [{}, {"solver": "mu"}, {"solver": "mu", "beta_loss": "kullback-leibler"}])
def test_workers_that_share_the_work_find_the_same(
    loss: dict[str, Any], cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {**PARAMETERS, **loss, "max_iter": 8}
    here = NMF(**parameters).fit(FORMS["unknown rows"]())
    monkeypatch.setattr(on_dask, "fits_one_task", lambda sizes: False)
    with Client(cluster):
        first = NMF(**parameters).fit(FORMS["unknown rows"]())
        again = NMF(**parameters).fit(FORMS["unknown rows"]())
    assert first.reconstruction_err_ == pytest.approx(here.reconstruction_err_, rel=0.01)
    np.testing.assert_array_equal(first.components_, again.components_)


def test_a_start_by_H_is_gone_on_from(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = NMF(**PARAMETERS).fit(X)
    model = NMF(5, init="custom", max_iter=1, random_state=0)
    for spread in (False, True):
        if spread:
            monkeypatch.setattr(on_dask, "fits_one_task", lambda sizes: False)
        model.fit(FORMS["sparse arrays"](), H=fitted.components_)
        assert model.reconstruction_err_ <= 1.001 * fitted.reconstruction_err_


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    seen = []

    def tracked(block: np.ndarray) -> np.ndarray:
        seen.append(len(block))
        return block

    array = FORMS["dense"]().map_blocks(tracked, meta=np.empty((0, 0)))
    model = NMF(**PARAMETERS).fit(array)
    seen.clear()
    W = model.transform(array)
    assert not seen
    W[:10].compute()
    assert seen == [700]  # the one chunk that holds these rows


def test_what_is_lazy_stays_what_it_was(client: Any) -> None:
    array = FORMS["sparse arrays"]()
    model = NMF(**PARAMETERS)
    W = model.fit_transform(array)
    expected = model.transform(X)
    model.set_params(n_components=3).fit(array)
    np.testing.assert_allclose(W.compute(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_leaves_what_is_lazy(container: str) -> None:
    array = FORMS["dense"]()
    model = NMF(**PARAMETERS).set_output(transform=container)
    assert isinstance(model.fit_transform(array), da.Array)
    assert isinstance(model.transform(array), da.Array)
    assert list(model.transform(X[:3]).columns) == ["nmf0", "nmf1", "nmf2", "nmf3", "nmf4"]


def test_batches_are_its_chunks() -> None:
    listed = NMF(**PARAMETERS).partial_fit([X[:700], X[700:1400], X[1400:2100], X[2100:]])
    chunks = [X[:700], X[:0], Sparse(X[700:1400]), X[1400:2100].toarray(), X[:0].toarray(), X[2100:]]
    model = NMF(**PARAMETERS).partial_fit(of_chunks(chunks))
    np.testing.assert_allclose(model.components_, listed.components_)
    assert model.n_steps_ == 4


def test_a_dask_data_frame_has_names() -> None:
    import dask.dataframe as dd

    columns = [f"c{j}" for j in range(300)]
    frame = dd.from_pandas(pd.DataFrame(X.toarray(), columns=columns), npartitions=3)
    model = NMF(**PARAMETERS).fit(frame)
    assert list(model.feature_names_in_) == columns
    assert model.transform(frame).compute().shape == (2400, 5)
    with pytest.raises(ValueError, match="must be in the same order"):
        model.transform(frame[columns[::-1]])
    stream = NMF(**PARAMETERS).partial_fit(frame)
    assert list(stream.feature_names_in_) == columns
    assert stream.n_steps_ == 3


def test_what_is_refused(client: Any) -> None:
    with pytest.raises(ValueError, match="Negative values"):
        NMF(2).fit(da.from_array(-X.toarray(), chunks=(800, 300)))
    model = NMF(2, random_state=0, max_iter=2).fit(FORMS["dense"]())
    with pytest.raises(ValueError, match="expecting 300 features"):
        model.transform(FORMS["dense"]()[:, :20])
    with pytest.raises(ValueError, match="dimensions"):
        NMF(2).fit(da.ones(5))
    with pytest.raises(ValueError, match="partial_fit, and a Dask array"):
        NMF(2, solver="mu", beta_loss=0.5).fit(FORMS["dense"]())
    with pytest.raises(ValueError, match="H alone"):
        NMF(2, init="custom").fit(FORMS["dense"]())
    for H, told in ((-1.0, "Negative values"), (np.nan, "NaN"), (0.0, "full of zeros")):
        with pytest.raises(ValueError, match=told):
            NMF(2, init="custom").fit(FORMS["dense"](), H=np.full((2, 300), H))
    with pytest.raises(ValueError, match="X has no rows"):
        NMF(2).fit(FORMS["dense"]()[:0])
    few = of_chunks([X[:3], X[3:4]], known=False)
    with pytest.raises(ValueError, match="can only be used when n_components <= min"):
        NMF(5, init="nndsvd").fit(few)
    assert NMF(5, max_iter=2).fit(few).components_.shape == (5, 300)
    with pytest.raises(ValueError, match="give a Dask array of 2 dimensions, or a Dask DataFrame"):
        NMF(2).fit(dask.delayed(X))


def test_chunks_of_another_width_than_they_say_are_refused(client: Any) -> None:
    """Once they were read beyond their end."""
    wrong = of_chunks([CHUNKS[0], CHUNKS[2][:, :100], CHUNKS[3]])
    with pytest.raises(ValueError, match="a chunk of X has 100 columns, and X says that it has 300"):
        NMF(2).fit(wrong)
    model = NMF(2, max_iter=2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="a chunk of X has 100 columns"):
        model.transform(wrong).compute()


def test_zeros_alone_are_done_with_at_once(client: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = NMF(**PARAMETERS).fit(da.zeros((2400, 300), chunks=(800, 300)))
    assert model.reconstruction_err_ == 0
    assert model.n_iter_ < 10


def test_workers_put_on_disk_what_they_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_dask, "fits_one_task", lambda sizes: False)
    array = of_chunks([X[low : low + 200] for low in range(0, 2400, 200)])
    parameters = {**PARAMETERS, "max_iter": 2, "tol": 0}
    found, written = [], []
    for target in (0.9, 1e-5):  # of the memory: all of the blocks, and none
        memory = {"target": target, "spill": False, "pause": False}  # these two go by all of this process
        settings = {f"distributed.worker.memory.{name}": value for name, value in memory.items()}
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=False,
                dashboard_address=":0",
                memory_limit="1GiB",
            ) as cluster,
            Client(cluster),
        ):
            found.append(NMF(**parameters).fit(array).components_)
            stores = [worker.data for worker in cluster.workers.values()]
            written.append(sum(one.cumulative_metrics["disk-write", "count"] for one in stores))
    assert written[0] == 0
    assert written[1] > 12
    np.testing.assert_array_equal(*found)


LARGER = """
    import resource, sys
    import dask, dask.array as da, numpy as np, scipy.sparse as sp
    from nmf_dask import NMF
    import nmf_dask.estimators.on_dask, nmf_dask.distributed.collections  # noqa: F401

    def chunk(seed):
        rng = np.random.default_rng(seed)
        columns = rng.integers(0, 2000, (10000, 100), dtype=np.int32).ravel()
        weights = rng.random(columns.size, dtype=np.float32)
        return sp.csr_array((weights, columns, np.arange(10001) * 100), shape=(10000, 2000))

    NMF(4, random_state=0, max_iter=1).fit(da.from_array(np.random.default_rng(0).random((50, 30)), chunks=(25, 30)))
    n = 24  # of 8 MB each: 192 MB
    here = int(open("/proc/self/statm").read().split()[5]) * 4096  # data and stack, as the limit counts them
    resource.setrlimit(resource.RLIMIT_DATA, (here + 110 * 2**20,) * 2)
    lazy = [da.from_delayed(dask.delayed(chunk)(i), (np.nan, 2000), np.float32) for i in range(n)]
    X = da.concatenate(lazy, allow_unknown_chunksizes=True)
    try:
        X.persist(scheduler="single-threaded")
    except MemoryError:
        pass
    else:
        sys.exit("the limit is no limit")
    with dask.config.set(scheduler="single-threaded"):
        model = NMF(4, random_state=0, max_iter=1, init="random", tol=0).fit(X)
        W = model.transform(X)
        assert W.chunks[1] == (4,)
        print(model.n_iter_, model.components_.shape, float(W.sum().compute()) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is allocated on Linux alone")
def test_a_dask_array_of_sparse_chunks_larger_than_memory() -> None:
    code = textwrap.dedent(LARGER)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[0] == "1 (4, 2000) True", done.stderr[-2000:]
