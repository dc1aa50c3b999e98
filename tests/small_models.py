"""A small model for tests of what is stored: real files of three topics over five features."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from nmf_dask.config import Settings
from nmf_dask.observer import Pass
from nmf_dask.store import ModelFolder, RunFolder, convergence_table, h_table, topics_table, w_table
from nmf_dask.vocabulary import Vocabulary

FIRST, SECOND = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
H = np.array([[0, 2, 1, 0, 0], [3, 0, 0, 3, 1], [0, 0, 0, 0, 0]], np.float32)
W = np.array([[0, 1, 0], [2, 1, 0], [0, 0, 0], [1, 0, 3]], np.float32)
VOCABULARY = Vocabulary(
    bucket=np.array([7, 1, 900, 12, 3], np.int64),
    term=pa.array(["star", "café", "quark", "gluon", "日本"]),
    document_frequency=np.array([4, 3, 3, 2, 2], np.int64),
    idf=np.array([1.0, 1.2, 1.2, 1.5, 1.5]),
    term_share=np.array([1, 1, 0.5, 1, 1], np.float32),
    n_documents=4,
)


def run_json(settings: Settings, **other: Any) -> dict[str, Any]:
    return {
        "status": "done",
        "config": settings.model_dump(mode="json"),
        "n_documents": 4,
        "n_features": 5,
        "reconstruction_err": 1.5,
        "topics": [
            {"topic": t, "share": share, "n_documents": 1} for t, share in enumerate((0.25, 0.5, 0.25))
        ],
        **other,
    }


def write_run(
    run: RunFolder, *, commit: bool = True, other: Mapping[str, Any] | None = None, h_rows: int = 3
) -> RunFolder:
    """All files of a run, W in two parts, H in parts of `h_rows` features."""
    settings = Settings.model_validate({"model": {"n_components": 3}})
    ids, known = pa.array(["d0", "d1", "d2", "d3"]), np.array([True, True, False, True])
    for part, rows in enumerate((slice(0, 3), slice(3, 4))):
        run.w_part(part).write_parquet(w_table(ids[rows], "doc_id", W[rows], known[rows]))
    table = h_table(VOCABULARY, H)
    for part, start in enumerate(range(0, 5, h_rows)):
        run.h_part(part).write_parquet(table.slice(start, h_rows))
    run.topics.write_parquet(topics_table(VOCABULARY, H, 2))
    run.convergence.write_parquet(convergence_table([Pass(1, 2.0, 0.1, 20), Pass(2, 1.5, 0.1, 1)]))
    (run.work / "blocks" / "00000.arrow").write_bytes(b"staged")
    run.write_run(run_json(settings, **(other or {})))
    if commit:
        run.commit(n_w_parts=2)
    return run


def reseal(run: RunFolder) -> None:
    """Make the manifest of a run say what its files are now: as of a writer that wrote them so."""
    run._seal([*run.h_parts(), *run.w_parts()], {})


def first_and_second(uri: Any) -> ModelFolder:
    """A model folder with two committed runs, the second one the latest."""
    model = ModelFolder(str(uri))
    write_run(model.run(FIRST))
    write_run(model.run(SECOND))
    return model


def started(code: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """A real process that runs `code`, with its ends of stdin and stdout in hand."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
