"""`nmf_dask.NMF.fit` beside scikit-learn's `NMF.fit`: one sparse matrix of a corpus, and one dense matrix.

Both sides get the same parameters and stop by their own rules; losses are those of float64, for both alike. The dense
matrix is planted: its iterations are the same on both sides, and so are its losses.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from typing import Any

from tests.benchmarks import options, problems
from tests.benchmarks.factorizing import Clock
from tests.benchmarks.measuring import Report, in_turn, mebibytes, median, run_function

SPARSE = {
    "cd": {"solver": "cd", "beta_loss": "frobenius"},
    "mu": {"solver": "mu", "beta_loss": "frobenius"},
    "kl": {"solver": "mu", "beta_loss": "kullback-leibler"},
}
SIDES = ("nmf-dask", "scikit-learn")


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("estimators", options.told_of(given), given.threads)
    with tempfile.TemporaryDirectory() as folder:
        staged = {"corpus": given.corpus, "text_column": given.text_column, "terms": options.terms_of(given)}
        problem = run_function(problems.stage, staged | {"folder": folder}, given.threads)
        report.notes.append(problems.described(problem))
        for name in given.losses:
            shared = {"k": given.n_components, "parameters": SPARSE[name] | {"max_iter": given.max_iter}}
            shared["random_state"] = given.random_state
            rows, columns = given.dense
            _compare(report, given, f"sparse, {name}", shared | {"folder": folder})
            dense = shared | {"rows": rows, "columns": columns}
            dense["parameters"] = SPARSE[name] | {"max_iter": given.dense_iter, "tol": 0}
            _compare(report, given, f"dense, {name}", dense)
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.add_argument(
        "--losses", nargs="+", choices=tuple(SPARSE), default=("cd", "mu"), help="kl takes them minutes"
    )
    made.add_argument("--max-iter", type=int, default=1000, help="of both sides, sparse")
    made.add_argument("--dense", type=int, nargs=2, default=(5000, 1000), help="rows and columns, float64")
    made.add_argument("--dense-iter", type=int, default=30, help="iterations, dense")
    return made


def _compare(report: Report, given: argparse.Namespace, title: str, arguments: dict[str, Any]) -> None:
    cases = {side: partial(run_function, fitted, arguments | {"side": side}, given.threads) for side in SIDES}
    runs = in_turn(cases, given.repeat)
    report.runs |= {f"{side}, {title}": one for side, one in runs.items()}
    us, them = (runs[side] for side in SIDES)
    report.tables[f"{title}: NMF.fit"] = [
        {
            "our seconds": median(us, "seconds_of_fit"),
            "their seconds": median(them, "seconds_of_fit"),
            "times as fast": median(them, "seconds_of_fit") / median(us, "seconds_of_fit"),
            "by cpu": median(them, "cpu_of_fit") / median(us, "cpu_of_fit"),
            "our loss": us[0]["loss"],
            "their loss": them[0]["loss"],
            "passes": us[0]["passes"],
            "iterations": them[0]["passes"],
            "MiB peak, ours": mebibytes(median(us, "peak_memory")),
            "theirs": mebibytes(median(them, "peak_memory")),
        }
    ]


def fitted(
    side: str,
    k: int,
    parameters: dict[str, Any],
    random_state: int,
    folder: str | None = None,
    rows: int = 0,
    columns: int = 0,
) -> dict[str, Any]:
    """A child: one fit, once the kernels have been met; W for the loss is made after the clock is read."""
    import numpy as np
    from scipy.sparse import csr_matrix

    import nmf_dask

    if side == "nmf-dask":
        estimator: Any = nmf_dask.NMF
    else:
        from sklearn.decomposition import NMF as estimator  # noqa: N811 - the same name on both sides
    X = problems.read_matrix(folder) if folder else _planted(rows, columns, k)
    warnings.simplefilter("ignore")
    few = X[: min(X.shape[0], 20 * k)]
    estimator(k, random_state=random_state, **parameters | {"max_iter": 3}).fit(few)
    model = estimator(k, random_state=random_state, **parameters)
    clock = Clock()
    model.fit(X)
    told = clock.read()
    exact = nmf_dask.NMF(k, **parameters)
    exact.components_, exact.n_features_in_ = np.asarray(model.components_), X.shape[1]
    W = exact.transform(X)  # the best W for the H of either side: what both are judged by
    return {
        "seconds_of_fit": told["seconds"],
        "cpu_of_fit": told["cpu"],
        "passes": int(model.n_iter_),
        "loss": problems.loss(csr_matrix(X), W, model.components_, parameters["beta_loss"]),
    }


def _planted(n: int, m: int, k: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.gamma(0.5, size=(n, k)) @ rng.gamma(0.5, size=(k, m)) + 0.1 * rng.random((n, m))


if __name__ == "__main__":
    main()
