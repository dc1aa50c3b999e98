"""What more workers give, what Dask adds to the same work, and what many small partitions cost.

The corpus should be large (corpus_c.py makes one of 1 GB). Every job is the whole pipeline in a fresh process; seconds
are those of its stages, and workers are warm, so the start of the cluster does not count.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function

STAGES = ("count", "select", "weigh", "init", "fit", "write", "all")
SHAPES = {
    "1 process": {"workers": 1, "threads_per_worker": 1},
    "2 processes": {"workers": 2, "threads_per_worker": 1},
    "1 thread": {"threads_per_worker": 1},
    "2 threads": {"threads_per_worker": 2},
    "2 threads, no Dask": {"pool": 2},
}


def run_job(**arguments: Any) -> dict[str, Any]:
    """A child: see jobs.run_job; imported there, since it imports the package."""
    from tests.benchmarks.jobs import run_job as run

    return run(**arguments)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("dask_overhead", options.told_of(given), 1)
    shapes = in_turn({name: partial(_job, given, shape) for name, shape in SHAPES.items()}, given.repeat)
    report.runs |= shapes
    report.tables["seconds of the stages, medians"] = [_stages(name, runs) for name, runs in shapes.items()]
    report.tables["two against one: times as fast"] = [
        _ratio(f"{kind[0]}, 2 against 1", shapes[kind[1]], shapes[kind[2]])
        for kind in (("processes", "1 process", "2 processes"), ("threads", "1 thread", "2 threads"))
    ]
    plain = shapes["2 threads, no Dask"]
    report.tables["time with Dask / without, two at work"] = [
        _ratio(name, shapes[name], plain) for name in ("2 processes", "2 threads")
    ]
    report.tables["bytes moved in the fit, 2 processes"] = [_moved(given, shapes["2 processes"])]
    if given.partition_bytes:
        _partitions(report, given)
    report.notes.append(_same_model(report.runs))
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__, threads=1))
    made.add_argument("--max-iter", type=int, default=20, help="passes at most")
    made.add_argument("--beta-loss", default="frobenius")
    made.add_argument(
        "--many-tasks", action="store_true", help="spread the fit over workers however small it is"
    )
    made.add_argument(
        "--partition-bytes", nargs=2, type=float, default=(1e6, 64e6), metavar=("SMALL", "LARGE"),
        help="of the jobs of many and of few partitions, on 2 processes; 0 0: none",
    )  # fmt: skip
    return made


def _job(given: argparse.Namespace, shape: dict[str, int], partition_bytes: float = 64 * 2**20) -> Run:
    model = {
        "n_components": given.n_components,
        "max_iter": given.max_iter,
        "random_state": given.random_state,
        "beta_loss": given.beta_loss,
    }
    arguments = {
        "corpus": given.corpus,
        "text_column": given.text_column,
        "terms": options.terms_of(given),
        "model": model,
        "cluster": shape,
        "partition_bytes": int(partition_bytes),
        "many_tasks": given.many_tasks,
    }
    return run_function(run_job, arguments, given.threads)


def _stages(name: str, runs: list[Run]) -> dict[str, Any]:
    seconds = {stage: median(runs, stage) for stage in STAGES}
    more = {"passes": runs[0]["passes"], "MiB largest worker": mebibytes(median(runs, "largest_worker"))}
    return {"what": name} | seconds | more | {"loss": runs[0]["loss"]}


def _ratio(name: str, above: list[Run], below: list[Run]) -> dict[str, Any]:
    return {"what": name} | {stage: median(above, stage) / median(below, stage) for stage in STAGES}


def _moved(given: argparse.Namespace, runs: list[Run]) -> dict[str, Any]:
    run, workers = runs[0], SHAPES["2 processes"]["workers"]
    if not run["rounds"]:
        return {"what": "the fit was one task; nothing moved in rounds (see --many-tasks)"}
    each = run["bytes_sent"] / workers / run["rounds"]
    statistics = 2 * given.n_components * run["n_features"] * 4
    return {
        "rounds": run["rounds"],
        "KB a worker and round": each / 1e3,
        "2·k·m·4, KB": statistics / 1e3,
        "of it": each / statistics,
    }


def _partitions(report: Report, given: argparse.Namespace) -> None:
    cases = {
        f"partitions of {size / 1e6:g} MB": partial(_job, given, SHAPES["2 processes"], size)
        for size in given.partition_bytes
        if size
    }
    if not cases:
        return
    runs = in_turn(cases, given.repeat)
    report.runs |= runs
    report.tables["many small partitions, 2 processes"] = [
        *(_stages(name, found) for name, found in runs.items()),
        _ratio("many / few", *runs.values()),
    ]


def _same_model(runs: dict[str, list[Run]]) -> str:
    """Whether all jobs of the same partitions wrote the same H."""
    found = {run["H"] for name, one in runs.items() if name in SHAPES for run in one}
    return f"H is {'the same bytes in every job' if len(found) == 1 else f'not the same: {sorted(found)}'}"


if __name__ == "__main__":
    main()
