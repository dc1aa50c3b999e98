"""The options that the programs share, and the settings that they stand for."""

from __future__ import annotations

import argparse
from typing import Any

from tests.benchmarks.measuring import cores

# What a term has to be where a program is about topics; both sides get them, whatever their own defaults are.
TERMS = {"min_df": 10, "max_df": 0.5, "max_features": 20_000, "stop_words": None}
ALL_TERMS = {"min_df": 1, "max_df": 1.0, "max_features": None, "stop_words": None}


def parser(
    description: str | None, terms: dict[str, Any] | None = TERMS, threads: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the options of every program; with `terms`, those of the vectorizer and their defaults."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument(
        "--corpus", required=True, help="Parquet file, folder or glob, as for nmf-dask fit --input"
    )
    made.add_argument("--text-column", default="text")
    made.add_argument("--repeat", type=int, default=3, help="runs of each side, in turn")
    made.add_argument("--threads", type=int, default=threads or cores(), help="threads of each side")
    made.add_argument("--json", metavar="FILE", help="write the tables and all runs here")
    if terms is not None:
        made.add_argument("--min-df", type=_count_or_share, default=terms["min_df"])
        made.add_argument("--max-df", type=_count_or_share, default=terms["max_df"])
        made.add_argument("--max-features", type=int, default=terms["max_features"])
        made.add_argument("--stop-words", default=terms["stop_words"], help="english, or none")
    return made


def with_k(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the number of topics, the seed, and the threads of peers."""
    made.add_argument("-k", "--n-components", type=int, default=10)
    made.add_argument(
        "--random-state", type=int, default=0, help="seed of both sides: minima differ by luck too"
    )
    made.add_argument("--peer-threads", type=int, help="threads of the peers, where they are to have others")
    return made


def _count_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def terms_of(options: argparse.Namespace) -> dict[str, Any]:
    """The vectorizer's settings; the names and meanings of both sides are the same."""
    return {name: getattr(options, name) for name in TERMS}


def peer_threads(options: argparse.Namespace) -> int:
    """Threads of the other side."""
    return int(options.peer_threads or options.threads)


def told_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options as the report repeats them."""
    return {name: value for name, value in vars(options).items() if name not in ("json", "threads")}
