"""Choosing k: how often `nmf-dask select` finds the number of topics that was planted, and what ten fits cost.

The planted corpora are those of tests/planted.py: unequal topics that share words, documents of two topics, a quarter
of the words noise. The cost is that of two jobs on `--corpus`, warm, each the second in its process: a selection of one
k with ten fits, and a fit of that k.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function
from tests.benchmarks.text import timed


def planted(n_topics: int, seed: int, around: int, fits: int, threads: int) -> dict[str, Any]:
    """A child: what is recommended for a planted corpus, among `around` numbers below the true one and above."""
    from nmf_dask import Settings, select
    from tests.planted import planted_texts
    from tests.small_corpora import write_corpus

    with tempfile.TemporaryDirectory() as folder:
        texts = planted_texts(n_topics, seed, n=2000 if n_topics < 20 else 4000)
        corpus = write_corpus(Path(folder) / "corpus", texts, 2, row_group_size=2000)
        settings = Settings(
            corpus={"input": str(corpus)},
            output={"output": f"{folder}/model"},
            cluster={"threads_per_worker": threads},
            select={"candidates": list(range(n_topics - around, n_topics + around + 1)), "fits": fits},
        )
        result, wall, cpu = timed(lambda: select(settings))
    kept = ("n_components", "stability_least", "held_out_loss")
    rows = [{key: one[key] for key in kept} for one in result.told["candidates"]]
    return {"wall": wall, "cpu": cpu, "found": result.n_components, "candidates": rows}


def job(
    corpus: str, text_column: str, terms: dict[str, Any], k: int, fits: int | None, threads: int
) -> dict[str, Any]:
    """A child: a fit of k topics, or with `fits` a selection of k alone, twice; the second one counts."""
    from nmf_dask import Settings, fit, select

    def once(folder: str) -> Any:
        settings = Settings(
            corpus={"input": corpus, "text_column": text_column},
            vectorizer=terms,
            model={"n_components": k},
            output={"output": folder},
            cluster={"threads_per_worker": threads},
            **({"select": {"candidates": [k], "fits": fits}} if fits else {}),
        )
        return timed(lambda: select(settings) if fits else fit(settings))

    with tempfile.TemporaryDirectory() as folder:
        once(f"{folder}/first")
        result, wall, cpu = once(f"{folder}/second")
    stages = result.told["stages"] if fits else result.run["stages"]
    return {"wall": wall, "cpu": cpu, "stages": {name: one["seconds"] for name, one in stages.items()}}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--planted", type=int, nargs="*", default=[7, 15, 30], help="true numbers of topics")
    made.add_argument("--seeds", type=int, default=10, help="planted corpora of each number")
    made.add_argument("--around", type=int, default=4, help="numbers tried below the true one, and above")
    made.add_argument("--fits", type=int, default=10)
    given = made.parse_args(argv)
    report = Report("select", options.told_of(given), given.threads)
    cases = {
        f"{k} topics, seed {seed}": partial(
            run_function,
            planted,
            {
                "n_topics": k,
                "seed": seed,
                "around": given.around,
                "fits": given.fits,
                "threads": given.threads,
            },
            given.threads,
        )
        for k in given.planted
        for seed in range(given.seeds)
    }
    report.runs = in_turn(cases, 1)
    report.tables["planted topics"] = [_found(k, given.seeds, report.runs) for k in given.planted]
    shared = {
        "corpus": given.corpus, "text_column": given.text_column, "terms": options.terms_of(given),
        "k": given.n_components, "threads": given.threads,
    }  # fmt: skip
    one, many = "one fit", f"{given.fits} fits"
    runs = in_turn(
        {
            one: partial(run_function, job, shared | {"fits": None}, given.threads),
            many: partial(run_function, job, shared | {"fits": given.fits}, given.threads),
        },
        given.repeat,
    )
    report.runs |= runs
    report.tables["what fits of one k cost, medians"] = [
        _cost(name, some, runs[one]) for name, some in runs.items()
    ]
    report.finish(given.json)


def _found(k: int, seeds: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    some = [runs[f"{k} topics, seed {seed}"][0] for seed in range(seeds)]
    found = [run["found"] for run in some]
    return {
        "planted": k,
        "corpora": seeds,
        "exactly": sum(one == k for one in found),
        "within 1": sum(abs(one - k) <= 1 for one in found),
        "found": " ".join(map(str, found)),
        "cpu seconds": sum(run["cpu"] for run in some) / seeds,
    }


def _cost(name: str, runs: list[Run], one: list[Run]) -> dict[str, Any]:
    return {
        "job": name,
        "seconds": median(runs, "wall"),
        "cpu seconds": median(runs, "cpu"),
        "times one fit": median(runs, "wall") / median(one, "wall"),
        "by cpu": median(runs, "cpu") / median(one, "cpu"),
        "MiB peak": mebibytes(median(runs, "peak_memory")),
    }


if __name__ == "__main__":
    main()
