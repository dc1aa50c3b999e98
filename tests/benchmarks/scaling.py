"""How the time a document grows with documents, topics and partitions, and a model of many workers.

The first three are measured: whole jobs in this machine's own cluster of threads, on a corpus that is repeated
(corpus_c.py). The last is network.py, fed with what was measured here; its assumptions are printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import corpus_c, network, options
from tests.benchmarks.dask_overhead import run_job
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function

WORKERS = (1, 10, 100, 1000)
TRIVIAL = 2000  # tasks that a task's cost is measured by
LOADS = {
    "20 MB": network.Load(100_000_000, 60, 50, 100_000),
    "2 GB": network.Load(100_000_000, 60, 500, 1_000_000),
}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("scaling", options.told_of(given), given.threads)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        corpora = _corpora(given, Path(folder))
        runs = in_turn(_cases(given, corpora), given.repeat)
    report.runs |= runs
    for kind in ("n", "k", "partitions"):
        rows = [_row(name, found) for name, found in runs.items() if name.startswith(f"{kind} ")]
        report.tables[f"as {kind} grows: microseconds a document, medians"] = rows
    _model(report, given, next(iter(runs.values())))
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--bytes", type=float, default=45e6, help="text of the smallest corpus")
    made.add_argument("--times", type=int, nargs="*", default=[1, 4, 16], help="sizes, in those bytes")
    made.add_argument("--topics", type=int, nargs="*", default=[10, 20, 50, 100, 200])
    made.add_argument(
        "--partitions", type=int, nargs="*", default=[4, 16, 64, 256], help="of the second size"
    )
    made.add_argument("--max-iter", type=int, default=20, help="passes at most")
    made.add_argument("--scratch", help="folder for the corpora")
    return made


def make_corpora(corpus: str, text_column: str, folders: dict[str, float]) -> dict[str, Any]:
    """A child: a corpus of a number of bytes in each folder."""
    for folder, n_bytes in folders.items():
        corpus_c.make(corpus, folder, int(n_bytes), files=4, row_groups=16, text_column=text_column)
    return {}


def _corpora(given: argparse.Namespace, folder: Path) -> dict[int, str]:
    corpora = {times: str(folder / f"{times}x") for times in given.times}
    folders = {path: times * given.bytes for times, path in corpora.items()}
    shared = {"corpus": given.corpus, "text_column": given.text_column}
    run_function(make_corpora, shared | {"folders": folders})
    return corpora


def _cases(given: argparse.Namespace, corpora: dict[int, str]) -> dict[str, Callable[[], Run]]:
    smallest, *larger = given.times
    second = larger[0] if larger else smallest
    cases: dict[str, Callable[[], Run]] = {}
    for times, corpus in corpora.items():
        cases[f"n {times}x"] = partial(_job, given, corpus, given.n_components)
    for k in given.topics:
        cases[f"k {k}"] = partial(_job, given, corpora[smallest], k)
    for count in given.partitions:
        size = second * given.bytes / count
        cases[f"partitions {count}"] = partial(_job, given, corpora[second], given.n_components, size)
    return cases


def _job(given: argparse.Namespace, corpus: str, k: int, partition_bytes: float = 64 * 2**20) -> Run:
    arguments = {
        "corpus": corpus,
        "text_column": "text",
        "terms": options.terms_of(given),
        "model": {"n_components": k, "max_iter": given.max_iter, "random_state": given.random_state},
        "cluster": {"threads_per_worker": given.threads},
        "partition_bytes": int(partition_bytes),
    }
    return run_function(run_job, arguments, given.threads)


def _row(name: str, runs: list[Run]) -> dict[str, Any]:
    n, passes = runs[0]["n_documents"], runs[0]["passes"]
    seconds = {
        stage: median(runs, stage) for stage in ("count", "select", "weigh", "init", "fit", "write", "all")
    }
    return {
        "what": name,
        "documents": n,
        "features": runs[0]["n_features"],
        **{stage: 1e6 * value / n for stage, value in seconds.items()},
        "passes": passes,
        "fit, a pass": 1e6 * seconds["fit"] / n / passes,
        "seconds": seconds["all"],
        "MiB": mebibytes(median(runs, "peak_memory")),
    }


def scheduling() -> dict[str, Any]:
    """A child: what one trivial task costs, of many that are handed over at once and whose results one task takes."""
    from nmf_dask.cluster import connected
    from nmf_dask.config import ClusterSettings
    from nmf_dask.tasks import Batch

    seconds = []
    with connected(ClusterSettings()) as cluster:
        for _ in range(3):
            batch = Batch()
            trivial = [batch.call("trivial", abs, number) for number in range(TRIVIAL)]
            started = time.perf_counter()
            (total,) = cluster.tasks.submit(batch, [batch.call("total", sum, trivial)])
            cluster.tasks.fetch(total)
            seconds.append((time.perf_counter() - started) / TRIVIAL)
    return {"task_seconds": min(seconds)}


def _model(report: Report, given: argparse.Namespace, runs: list[Run]) -> None:
    run = runs[0]
    work = run["nnz"] * given.n_components * run["passes"] / given.threads
    measured = {
        "nonzero_seconds": median(runs, "fit") / work,
        "task_seconds": run_function(scheduling, {})["task_seconds"],
    }
    machine = replace(network.Machine(), **measured)
    rows = [_modelled(size, workers, load, machine) for size, load in LOADS.items() for workers in WORKERS]
    report.tables["model: seconds of one pass over 100 million documents of 60 terms"] = rows
    report.tables["model: where it stops"] = [_stops(size, load, machine) for size, load in LOADS.items()]
    assumed = ", ".join(f"{name} {value:.3g}" for name, value in asdict(machine).items())
    report.notes.append(f"assumptions (network.py; the first two measured here): {assumed}")


def _modelled(size: str, workers: int, load: network.Load, machine: network.Machine) -> dict[str, Any]:
    now, split = network.pass_time(workers, load, machine), network.split_pass_time(workers, load, machine)
    return {
        "H": size,
        "workers": workers,
        **asdict(now),
        "pass": now.total,
        "efficiency": f"{now.efficiency:.0%}",
        "H split": split.total,
        "its efficiency": f"{split.efficiency:.0%}",
    }


def _stops(size: str, load: network.Load, machine: network.Machine) -> dict[str, Any]:
    return {
        "H": size,
        "half busy up to": network.most_workers(load, machine),
        "fastest with": network.fastest(load, machine),
        "H split: half busy up to": network.most_workers(load, machine, split=True),
        "fastest with (H split)": network.fastest(load, machine, split=True),
    }


if __name__ == "__main__":
    main()
