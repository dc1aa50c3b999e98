"""The same TF-IDF matrix factorized by nmf-dask in one process and by scikit-learn's NMF.

Each side starts from its own nndsvda, whose time counts. Ours is timed until the loss at which each of theirs stops;
losses are those of float64, computed in the same way for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.benchmarks import factorizing, options, problems
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function

LOSSES = ("frobenius", "kullback-leibler")


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("factorization", options.told_of(given), given.threads)
    with tempfile.TemporaryDirectory() as folder:
        staged = {"corpus": given.corpus, "text_column": given.text_column, "terms": options.terms_of(given)}
        problem = run_function(problems.stage, staged | {"folder": folder}, given.threads)
        report.notes.append(problems.described(problem))
        for beta_loss in LOSSES if given.loss == "both" else (given.loss,):
            _until_their_loss(report, given, folder, beta_loss)
            _one_pass(report, given, folder, beta_loss)
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--loss", choices=(*LOSSES, "both"), default="frobenius", help="KL takes them minutes")
    made.add_argument("--peers", nargs="+", choices=("mu", "cd"), default=("mu", "cd"), help="for Frobenius")
    made.add_argument("--peer-max-iter", type=int, default=1000, help="their iterations at most")
    made.add_argument("--pass-iterations", type=int, default=20, help="that one pass is timed by")
    made.add_argument("--solver", default="auto", help="ours")
    return made


def _until_their_loss(report: Report, given: argparse.Namespace, folder: str, beta_loss: str) -> None:
    shared = {"folder": folder, "k": given.n_components, "beta_loss": beta_loss}
    shared["random_state"] = given.random_state
    cases: dict[str, Callable[[], Run]] = {}
    for solver in given.peers if beta_loss == "frobenius" else ("mu",):
        arguments = shared | {"solver": solver, "max_iter": given.peer_max_iter}
        cases[f"scikit-learn {solver} {beta_loss}"] = partial(
            run_function, factorizing.theirs, arguments, options.peer_threads(given)
        )
        if not cases.keys() & {name := f"nmf-dask {beta_loss}"}:
            arguments = shared | {"threads": given.threads, "solver": given.solver}
            cases[name] = partial(run_function, factorizing.ours, arguments, given.threads)
    runs = in_turn(cases, given.repeat)
    report.runs |= runs
    us = runs.pop(f"nmf-dask {beta_loss}")
    report.tables[f"{beta_loss}: time until their loss, init included on both sides, medians"] = [
        _row(name, peer, us) for name, peer in runs.items()
    ]
    report.tables[f"{beta_loss}: ours until it stops"] = [
        {
            "init": median(us, "init_seconds"),
            "total": median(us, "total_seconds"),
            "passes": us[0]["passes"],
            "loss": us[0]["loss"],
            "loss told": us[0]["curve"][-1]["loss"],
            "stopped by": us[0]["stop_reason"],
            "MiB peak": mebibytes(median(us, "peak_memory")),
        }
    ]


def _row(peer: str, theirs: list[Run], us: list[Run]) -> dict[str, Any]:
    wanted = median(theirs, "loss")
    reached = [point for point in (first_at(run["curve"], wanted) for run in us) if point is not None]
    seconds = statistics.median(point["seconds"] for point in reached) if reached else None
    cpu = statistics.median(point["cpu"] for point in reached) if reached else None
    total = median(theirs, "total_seconds")
    return {
        "peer": peer,
        "their seconds": total,
        "iterations": theirs[0]["iterations"],
        "their loss": wanted,
        "our seconds": seconds,
        "passes": reached[0]["passes"] if reached else None,
        "loss there": reached[0]["loss"] if reached else None,
        "our last loss / theirs - 1": f"{us[0]['loss'] / wanted - 1:+.1e}",
        "times as fast": total / seconds if seconds else "not reached",
        "by cpu": median(theirs, "cpu") / cpu if cpu else None,
        "MiB peak, theirs": mebibytes(median(theirs, "peak_memory")),
    }


def first_at(curve: list[dict[str, Any]], wanted: float) -> dict[str, Any] | None:
    """The first point of a curve whose loss is no higher than `wanted`."""
    return next((point for point in curve if point["loss"] <= wanted), None)


def _one_pass(report: Report, given: argparse.Namespace, folder: str, beta_loss: str) -> None:
    """One whole pass of one sweep against one iteration."""
    shared = {"folder": folder, "k": given.n_components, "beta_loss": beta_loss}
    plain = {"solver": "mu", "rounds": 1, "sweeps": 1, "tol": 0.0, "init": "random"}
    ours = shared | plain | {"threads": given.threads, "max_iter": given.pass_iterations}
    theirs = shared | {"iterations": given.pass_iterations}
    cases = {
        f"nmf-dask pass {beta_loss}": partial(run_function, factorizing.ours, ours, given.threads),
        f"scikit-learn iteration {beta_loss}": partial(
            run_function, factorizing.their_iteration, theirs, options.peer_threads(given)
        ),
    }
    runs = in_turn(cases, given.repeat)
    report.runs |= runs
    us, them = runs.values()
    one = statistics.median(statistics.median(run["pass_seconds"]) for run in us)
    iteration = median(them, "iteration_seconds")
    report.tables[f"{beta_loss}: one whole pass of one sweep, one iteration of their mu"] = [
        {"our ms": one * 1e3, "their ms": iteration * 1e3, "ours / theirs": one / iteration}
    ]


if __name__ == "__main__":
    main()
