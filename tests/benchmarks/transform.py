"""W of documents under a fitted H: the job `nmf-dask transform` against TfidfVectorizer.transform and NMF.transform.

Both sides have the H and the idf of one model of ours. Ours reads the Parquet files and writes W; scikit-learn has the
strings in memory and leaves W there. Beside the time stands how near W is to what scikit-learn's NMF.transform gives
once it stands still, on the first documents (`--sample`).
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function
from tests.benchmarks.text import timed

EXACT_ITERATIONS = {"frobenius": 20_000, "kullback-leibler": 20_000}


def fitted(
    corpus: str, text_column: str, terms: dict[str, Any], model: dict[str, Any], output: str
) -> dict[str, Any]:
    """A child: the model that both sides use."""
    from nmf_dask import Settings, fit

    settings = Settings(
        corpus={"input": corpus, "text_column": text_column},
        vectorizer=terms,
        model=model,
        output={"output": output},
    )
    return {"loss": fit(settings).run["reconstruction_err"]}


def ours(corpus: str, text_column: str, model: str, sample: int, threads: int) -> dict[str, Any]:
    """A child: the whole job, twice; the second one counts."""
    import pyarrow.dataset as ds

    from nmf_dask import Settings, TopicModel, transform
    from nmf_dask.store import Folder, TransformFolder, weights_of

    loaded = TopicModel.load(model)
    with tempfile.TemporaryDirectory() as folder:

        def job(name: str) -> Any:
            return transform(
                Settings(
                    corpus={"input": corpus, "text_column": text_column},
                    output={"output": f"{folder}/{name}"},
                    cluster={"threads_per_worker": threads},
                    transform={"model": model},
                )
            )

        job("first")
        result, wall, cpu = timed(lambda: job("second"))
        table = next(TransformFolder(Folder(f"{folder}/second")).tables())
        W = weights_of(table, loaded.n_components)[:sample]
    texts = ds.dataset(corpus).head(len(W), columns=[text_column])[text_column]
    X = _our_rows(loaded, texts)
    return {
        "wall": wall,
        "cpu": cpu,
        "n_documents": result.told["n_documents"],
        "error": _error(W, _exact(X, loaded)),
    }


def _our_rows(model: Any, texts: Any) -> Any:
    from nmf_dask.kernels.matrices import to_scipy
    from nmf_dask.text import count_texts
    from nmf_dask.vocabulary import weigh

    counts = count_texts(texts, model.vectorizer_settings)
    return to_scipy(weigh(counts, model.vocabulary, model.vectorizer_settings)).astype("float64")


def theirs(
    corpus: str, text_column: str, terms: dict[str, Any], model: str, sample: int, tol: float, max_iter: int
) -> dict[str, Any]:
    """A child: scikit-learn, float32, with the strings in memory."""
    import numpy as np
    import pyarrow.dataset as ds
    from sklearn.feature_extraction.text import TfidfVectorizer

    from nmf_dask import TopicModel

    loaded = TopicModel.load(model)
    texts = [text or "" for text in ds.dataset(corpus).to_table([text_column])[text_column].to_pylist()]
    names = loaded.vocabulary.term.to_pylist()
    vectorizer = TfidfVectorizer(vocabulary=names, stop_words=terms["stop_words"], dtype=np.float32)
    vectorizer.idf_ = loaded.vocabulary.idf.astype(np.float32)
    nmf = _nmf(loaded, np.float32, tol, max_iter)
    nmf.transform(vectorizer.transform(texts[:200]))

    def work() -> Any:
        X, text_seconds, _ = timed(lambda: vectorizer.transform(texts))
        X.sort_indices()  # else its Kullback-Leibler loss is wrong
        return nmf.transform(X), text_seconds, X[:sample].astype(np.float64)

    (W, text_seconds, X), wall, cpu = timed(work)
    return {
        "wall": wall,
        "cpu": cpu,
        "text": text_seconds,
        "n_documents": len(W),
        "error": _error(W[:sample], _exact(X, loaded)),
    }


def _nmf(model: Any, dtype: Any, tol: float, max_iter: int) -> Any:
    from sklearn.decomposition import NMF

    warnings.simplefilter("ignore")  # that it has not converged is what the table says
    settings = model.model_settings
    nmf = NMF(
        model.n_components, solver=settings.method, beta_loss=settings.beta_loss, tol=tol, max_iter=max_iter
    )
    nmf.components_ = model.H.astype(dtype)
    nmf.n_components_, nmf.n_features_in_ = nmf.components_.shape
    nmf._n_components, nmf._beta_loss = model.n_components, 2 if settings.beta_loss == "frobenius" else 1
    return nmf


def _exact(X: Any, model: Any) -> Any:
    """W that scikit-learn comes to in float64 when it is left to run."""
    return _nmf(model, "float64", 1e-14, EXACT_ITERATIONS[model.model_settings.beta_loss]).transform(X)


def _error(W: Any, exact: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(W - exact) / np.linalg.norm(exact))


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--loss", choices=["frobenius", "kullback-leibler", "both"], default="both")
    made.add_argument("--sample", type=int, default=300, help="documents that accuracy is taken of")
    made.add_argument(
        "--peer-tol", type=float, nargs="+", default=[1e-4], help="scikit-learn's tol, one or more"
    )
    made.add_argument("--peer-max-iter", type=int, default=200, help="scikit-learn's iterations at most")
    given = made.parse_args(argv)
    report = Report("transform", options.told_of(given), given.threads)
    losses = ("frobenius", "kullback-leibler") if given.loss == "both" else (given.loss,)
    for loss in losses:
        with tempfile.TemporaryDirectory() as folder:
            _measure(given, report, loss, str(Path(folder) / "model"))
    report.finish(given.json)


def _measure(given: Any, report: Report, loss: str, model: str) -> None:
    shared = {"corpus": given.corpus, "text_column": given.text_column}
    terms = options.terms_of(given)
    settings = {"n_components": given.n_components, "beta_loss": loss, "random_state": given.random_state}
    run_function(fitted, shared | {"terms": terms, "model": settings, "output": model}, given.threads)
    shared |= {"model": model, "sample": given.sample}
    us = f"nmf-dask transform, {loss}"
    cases = {us: partial(run_function, ours, shared | {"threads": given.threads}, given.threads)}
    for tol in given.peer_tol:
        limits = {"tol": tol, "max_iter": given.peer_max_iter, "terms": terms}
        name = f"scikit-learn, {loss}, tol {tol:g}"
        cases[name] = partial(run_function, theirs, shared | limits, options.peer_threads(given))
    runs = in_turn(cases, given.repeat)
    report.runs |= runs
    report.tables[f"{loss}: strings to W, medians"] = [
        _row(name, some, runs[us]) for name, some in runs.items()
    ]


def _row(name: str, runs: list[Run], us: list[Run]) -> dict[str, Any]:
    told = runs[0].told
    return {
        "side": name,
        "documents": told["n_documents"],
        "seconds": median(runs, "wall"),
        "cpu seconds": median(runs, "cpu"),
        "theirs / ours": median(runs, "wall") / median(us, "wall"),
        "error of W": told["error"],
        "of it text": told.get("text"),
        "MiB peak": mebibytes(median(runs, "peak_memory")),
    }


if __name__ == "__main__":
    main()
