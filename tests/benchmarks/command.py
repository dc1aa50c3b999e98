"""The whole command in a cold process, against scripts that do the same with other libraries.

`nmf-dask fit` reads, counts, weighs, fits and writes; the scripts (peers.py) write nothing. Its kernels are compiled
before the clock starts, except in the row that says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options, peers
from tests.benchmarks.measuring import (
    Report,
    Run,
    environment,
    in_turn,
    mebibytes,
    median,
    run_command,
    run_function,
)

US = "nmf-dask fit"
THEM = "scikit-learn"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("command", options.told_of(given), given.threads)
    print("compiling kernels", file=sys.stderr, flush=True)
    _fit(given)
    report.runs = in_turn(_cases(given, report), given.repeat)
    if given.empty_cache:
        report.runs |= in_turn({f"{US}, kernels not compiled": partial(_fit_with_empty_cache, given)}, 1)
    report.tables["whole command, cold process, medians"] = [
        _row(name, runs, report.runs[US]) for name, runs in report.runs.items()
    ]
    stages = report.runs[US][0]["stages"]
    report.tables["where our time goes"] = [
        {"stage": name, "seconds": stage["seconds"]} for name, stage in stages.items()
    ]
    report.tables["start, medians"] = _start(given)
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--peer-max-iter", type=int, default=200, help="scikit-learn's iterations at most")
    made.add_argument("--gensim", action="store_true", help="also gensim's Nmf, one pass")
    made.add_argument("--spark", action="store_true", help="also Spark's online LDA")
    made.add_argument("--spark-iterations", type=int, default=20)
    made.add_argument("--empty-cache", action="store_true", help="also our command with nothing compiled")
    made.add_argument("--starts", type=int, default=5, help="times that only the start is measured")
    made.add_argument("--workers", type=int, help="worker processes of ours; none: its own process")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for nmf-dask fit")
    return made


def _cases(given: argparse.Namespace, report: Report) -> dict[str, Callable[[], Run]]:
    corpus = {"corpus": given.corpus, "text_column": given.text_column}
    shared = corpus | {"terms": options.terms_of(given), "k": given.n_components}
    cases: dict[str, Callable[[], Run]] = {US: partial(_fit, given)}
    threads = options.peer_threads(given)
    arguments = shared | {"max_iter": given.peer_max_iter, "random_state": given.random_state}
    cases[THEM] = partial(run_function, peers.scikit_learn, arguments, threads)
    if given.gensim and not report.lacks("gensim Nmf", ["gensim"]):
        cases["gensim Nmf, one pass"] = partial(run_function, peers.gensim_nmf, shared, threads)
    if given.spark and not report.lacks("Spark LDA", ["pyspark"]) and _has_java(report):
        arguments = shared | {"iterations": given.spark_iterations, "threads": threads}
        name = f"Spark LDA, {given.spark_iterations} iterations"
        cases[name] = partial(run_function, peers.spark_lda, arguments, threads)
    return cases


def _has_java(report: Report) -> bool:
    if shutil.which("java"):
        return True
    report.missing.append("Spark LDA is not measured: there is no java on the path")
    return False


def fit_command(given: argparse.Namespace, output: str) -> list[str]:
    """The command line of our fit."""
    command = [sys.executable, "-m", "nmf_dask", "fit", "--input", given.corpus, "--output", output]
    command += ["--text-column", given.text_column, "-k", str(given.n_components), "--log-format", "json"]
    for name, value in options.terms_of(given).items():
        if value is not None or name == "max_features":
            command += [f"--{name.replace('_', '-')}", "none" if value is None else str(value)]
    command += ["--random-state", str(given.random_state)]
    if given.workers:
        command += ["--workers", str(given.workers)]
    threads = max(1, given.threads // (given.workers or 1))
    command += ["--threads-per-worker", str(threads)]
    return command + [word for pair in given.set for word in ("--set", pair)]


def _fit(given: argparse.Namespace, **variables: str) -> Run:
    """Our command, and what its run.json says."""
    with tempfile.TemporaryDirectory() as output:
        model = str(Path(output) / "model")
        run = run_command(fit_command(given, model), _unpinned(**variables))
        (file,) = Path(model).glob("runs/*/run.json")
        told = json.loads(file.read_text())
        written = sum(file.stat().st_size for file in Path(model).rglob("*") if file.is_file())
    worker = told["peak_memory"]["largest_worker"]
    kept = {name: told[name] for name in ("stages", "n_iter", "n_documents", "n_features", "nnz")}
    kept |= {"loss": told["reconstruction_err"], "iterations": told["n_iter"], "written": written}
    return replace(run, told=kept | {"largest_worker": worker})


def _unpinned(**variables: str) -> dict[str, str]:
    """The user's own variables: our command sees to its threads itself, with --threads-per-worker."""
    return {name: value for name, value in environment(1, **variables).items() if "NUM_THREADS" not in name}


def _fit_with_empty_cache(given: argparse.Namespace) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return _fit(given, NUMBA_CACHE_DIR=folder)


def _row(name: str, runs: list[Run], us: list[Run]) -> dict[str, Any]:
    told = runs[0].told
    return {
        "what": name,
        "seconds": median(runs, "seconds"),
        "cpu seconds": median(runs, "cpu_seconds"),
        "ours / theirs": median(us, "seconds") / median(runs, "seconds"),
        "MiB peak": mebibytes(median(runs, "peak_memory")),
        "MiB of all processes": mebibytes(median(runs, "peak_memory_of_all")),
        "loss": told.get("loss"),
        "iterations": told.get("iterations"),
        "text": told.get("text_seconds"),
        "fit": told.get("fit_seconds"),
    }


def _start(given: argparse.Namespace) -> list[dict[str, Any]]:
    version = [sys.executable, "-m", "nmf_dask", "--version"]
    runs = [run_command(version, _unpinned()) for _ in range(given.starts)]
    first = statistics.median(_seconds_to_first_task(given) for _ in range(given.starts))
    return [
        {"what": "nmf-dask --version", "seconds": median(runs, "seconds")},
        {"what": "nmf-dask fit, until its first task is handed over", "seconds": first},
    ]


def _seconds_to_first_task(given: argparse.Namespace) -> float:
    """Until the log says that counting begins; the process is ended there."""
    with tempfile.TemporaryDirectory() as output:
        command = fit_command(given, str(Path(output) / "model"))
        started = time.perf_counter()
        with subprocess.Popen(
            command, env=_unpinned(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr is not None
            for line in child.stderr:
                if '"event": "stage"' in line and '"stage": "count"' in line:
                    seconds = time.perf_counter() - started
                    child.terminate()
                    child.communicate()
                    return seconds
    raise RuntimeError(f"{' '.join(command)} ended before it counted")


if __name__ == "__main__":
    main()
