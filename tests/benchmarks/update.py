"""A corpus that drifts, year by year: `nmf-dask update` of the last year against a fit of everything from scratch.

The corpus has a column `date`. What came before the last years is fitted, then each of them is taken in by an update.
Half of the documents of the newest month are held out: the loss on them says what an update costs beside its time.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function
from tests.benchmarks.text import timed

FEW = 60  # documents of a period of the run before, in which workers meet their kernels


def updated(
    corpus: str, years: int, terms: dict[str, Any], model: dict[str, Any], history: str
) -> dict[str, Any]:
    """A child: the model of what came first, and its updates; the last one is timed."""
    from nmf_dask import Settings, fit, update
    from tests.drifting import write_period

    drift = _drift(corpus, years)
    with tempfile.TemporaryDirectory() as folder:

        def grown(name: str, periods: list[list[str]]) -> Any:
            settings = Settings(
                corpus={"input": f"{folder}/{name}-corpus"}, vectorizer=terms, model=model,
                output={"output": f"{folder}/{name}"}, update={"history": history},
            )  # fmt: skip
            write_period(Path(f"{folder}/{name}-corpus"), 0, periods[0])
            fit(settings)
            for number, texts in enumerate(periods[1:], 1):
                write_period(Path(f"{folder}/{name}-corpus"), number, texts)
                last = timed(lambda: update(settings))
            return last

        grown("few", [texts[: FEW * model["n_components"]] for texts in drift.periods[:2]])
        result, wall, cpu = grown("all", drift.periods)
        return {"wall": wall, "cpu": cpu, **_told(result, drift)}


def scratch(corpus: str, years: int, terms: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """A child: a fit of everything."""
    from nmf_dask import Settings, fit
    from tests.drifting import write_period

    drift = _drift(corpus, years)
    with tempfile.TemporaryDirectory() as folder:

        def fitted(name: str, texts: list[str]) -> Any:
            write_period(Path(f"{folder}/{name}-corpus"), 0, texts)
            settings = Settings(
                corpus={"input": f"{folder}/{name}-corpus"}, vectorizer=terms, model=model,
                output={"output": f"{folder}/{name}"},
            )  # fmt: skip
            return timed(lambda: fit(settings))

        fitted("few", drift.periods[0][: FEW * model["n_components"]])
        result, wall, cpu = fitted("all", [text for texts in drift.periods for text in texts])
        return {"wall": wall, "cpu": cpu, **_told(result, drift)}


def _drift(corpus: str, years: int) -> Any:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from tests.drifting import arxiv_drift

    newest = pc.max(ds.dataset(corpus).to_table(["date"])["date"]).as_py()
    return arxiv_drift(Path(corpus), newest.year - years + 1, years)


def _told(result: Any, drift: Any) -> dict[str, Any]:
    from nmf_dask import TopicModel
    from tests.drifting import held_out_loss

    model = TopicModel.load(result.uri)
    return {
        "n_documents": result.run["n_documents"],
        "n_iter": result.run["n_iter"],
        "held_out": held_out_loss(model, drift.held_out, model),
        "n_features": len(model.vocabulary),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--loss", choices=["frobenius", "kullback-leibler"], default="frobenius")
    made.add_argument("--years", type=int, default=3, help="how many years come one by one")
    made.add_argument("--history", nargs="+", default=["keep", "discount=0.9"], help="one or more")
    given = made.parse_args(argv)
    report = Report("update", options.told_of(given), given.threads)
    model = {"n_components": given.n_components, "beta_loss": given.loss, "random_state": given.random_state}
    shared = {"corpus": given.corpus, "years": given.years, "terms": options.terms_of(given), "model": model}
    whole = "fit of everything"
    cases = {
        f"update, {history}": partial(run_function, updated, shared | {"history": history}, given.threads)
        for history in given.history
    }
    cases[whole] = partial(run_function, scratch, shared, given.threads)
    runs = in_turn(cases, given.repeat)
    report.runs |= runs
    report.tables[f"{given.loss}: the last year, medians"] = [
        _row(name, some, runs[whole]) for name, some in runs.items()
    ]
    report.finish(given.json)


def _row(name: str, runs: list[Run], whole: list[Run]) -> dict[str, Any]:
    told = runs[0].told
    return {
        "side": name,
        "documents": told["n_documents"],
        "features": told["n_features"],
        "passes": told["n_iter"],
        "seconds": median(runs, "wall"),
        "cpu seconds": median(runs, "cpu"),
        "scratch / this": median(whole, "wall") / median(runs, "wall"),
        "held-out loss": told["held_out"],
        "over scratch": told["held_out"] / whole[0].told["held_out"] - 1,
        "MiB peak": mebibytes(median(runs, "peak_memory")),
    }


if __name__ == "__main__":
    main()
