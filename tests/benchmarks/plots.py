"""Loss against time and against passes, Frobenius and Kullback-Leibler: nmf-dask and scikit-learn, as a PNG.

Clocks hold each side's own start. scikit-learn's curve comes from fits of a few iterations that go on from each other;
its clock runs in the fits alone (see factorizing.their_curve). Losses are √(2D); ours are those that passes report.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from tests.benchmarks import factorizing, options, problems
from tests.benchmarks.measuring import Report, run_function

CURVES = {"frobenius": ("mu", "cd"), "kullback-leibler": ("mu",)}


def main(argv: list[str] | None = None) -> None:
    """Measure, draw, write."""
    given = _parser().parse_args(argv)
    report = Report("plots", options.told_of(given), given.threads)
    lacking = report.lacks("the plot", ["matplotlib"])
    curves: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        staged = {"corpus": given.corpus, "text_column": given.text_column, "terms": options.terms_of(given)}
        problem = run_function(problems.stage, staged | {"folder": folder}, given.threads)
        report.notes.append(problems.described(problem))
        for beta_loss in CURVES:
            curves[beta_loss] = _curves(given, folder, beta_loss, report)
    report.tables["last points"] = [
        {"loss": beta_loss, "side": side} | curve[-1]
        for beta_loss, sides in curves.items()
        for side, curve in sides.items()
    ]
    if not lacking:
        run_function(draw, {"curves": curves, "title": problems.described(problem), "output": given.output})
        report.notes.append(f"drawn: {given.output}")
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.add_argument("--output", default="loss.png")
    made.add_argument("--iterations", type=int, default=100, help="of scikit-learn for Frobenius")
    made.add_argument("--kl-iterations", type=int, default=60, help="of scikit-learn for Kullback-Leibler")
    return made


def _curves(given: argparse.Namespace, folder: str, beta_loss: str, report: Report) -> dict[str, Any]:
    shared = {"folder": folder, "k": given.n_components, "beta_loss": beta_loss}
    shared["random_state"] = given.random_state
    found = {}
    runs = [run_function(factorizing.ours, shared | {"threads": given.threads}, given.threads)]
    found["nmf-dask"] = runs[0]["curve"]
    report.runs[f"nmf-dask {beta_loss}"] = runs
    iterations = given.iterations if beta_loss == "frobenius" else given.kl_iterations
    for solver in CURVES[beta_loss]:
        arguments = shared | {"solver": solver, "max_iter": iterations}
        runs = [run_function(factorizing.their_curve, arguments, options.peer_threads(given))]
        found[f"scikit-learn {solver}"] = runs[0]["curve"]
        report.runs[f"scikit-learn {solver} {beta_loss}"] = runs
    return found


def draw(curves: dict[str, dict[str, Any]], title: str, output: str) -> dict[str, Any]:
    """A child: the panels, a row a loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(curves), 2, figsize=(9, 6), sharey="row", layout="constrained")
    for row, (beta_loss, sides) in zip(panels, curves.items(), strict=True):
        for panel, unit in zip(row, ("seconds", "passes"), strict=True):
            _panel(panel, sides, unit)
        row[0].set_ylabel(f"√(2D), {beta_loss}")
        _zoom(row[0], sides)
    panels[0][0].legend()
    for panel, label in zip(panels[-1], ("seconds, start included", "passes over the data"), strict=True):
        panel.set_xlabel(label)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(output, dpi=80)
    return {}


def _panel(panel: Any, sides: dict[str, Any], unit: str) -> None:
    for number, (side, curve) in enumerate(sides.items()):
        x, y = ([point[name] for point in curve] for name in (unit, "loss"))
        panel.plot(x, y, "o-", markersize=2.5, linewidth=1.2, label=side, color=f"C{number}")
    panel.set_xscale("log")
    panel.grid(alpha=0.3)


def _zoom(panel: Any, sides: dict[str, Any]) -> None:
    """The start of a curve is far above its end; what matters is how the end is reached."""
    losses = sorted(point["loss"] for curve in sides.values() for point in curve)
    low, middle = losses[0], losses[int(0.85 * (len(losses) - 1))]
    spread = (middle - low) or low * 1e-6
    panel.set_ylim(low - 0.1 * spread, middle + 0.4 * spread)


if __name__ == "__main__":
    main()
