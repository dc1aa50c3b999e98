"""Corpora for tests of whole jobs, and what scikit-learn says of the models that come out."""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from nmf_dask.config import Settings
from nmf_dask.store import weights_of
from tests.text_oracle import analyzer_options

ROOT = Path(__file__).parents[1]


def generated_texts(n: int = 300, n_topics: int = 6, seed: int = 0, length: int = 30) -> list[str]:
    """Documents of one or two of several subjects, in words that the subjects share in part."""
    random = np.random.default_rng(seed)
    words = np.array([f"w{i:03d}" for i in range(300)])
    topics = random.dirichlet(np.full(len(words), 0.05), n_topics)
    mixed = random.dirichlet(np.full(n_topics, 0.1), n) @ topics
    return [" ".join(random.choice(words, length, p=row / row.sum())) for row in mixed]


def write_corpus(folder: Path, texts: Sequence[str | None], n_files: int = 1, **options: Any) -> Path:
    """Parquet files of equal size with columns doc_id and text; row groups of a few rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [len(texts) * part // n_files for part in range(n_files + 1)]
    for part, (low, high) in enumerate(pairwise(cuts)):
        ids = [f"d{i:05d}" for i in range(low, high)]
        table = pa.table({"doc_id": ids, "text": pa.array(texts[low:high], pa.string())})
        pq.write_table(table, folder / f"part-{part:05d}.parquet", **{"row_group_size": 20, **options})
    return folder


def settings_of(corpus: Path, model: Path, /, **sections: Any) -> Settings:
    """Settings of a small job; a section's keys are added to the ones that every test has."""
    base: dict[str, dict[str, Any]] = {
        "corpus": {"input": str(corpus), "id_column": "doc_id"},
        "model": {"n_components": 5},
        "output": {"output": str(model)},
    }
    for name, keys in sections.items():
        base[name] = {**base.get(name, {}), **keys}
    return Settings.model_validate(base)


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "nmf_dask", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's own, without settings of jobs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NMF_DASK_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run_command(*arguments: Any, timeout: float = 120, **more: str) -> "subprocess.CompletedProcess[str]":
    """The real command, in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(**more),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def h_bytes(run: str | Path) -> bytes:
    """The weights of H, as they lie in the file."""
    return b"".join(matrix_of(part).tobytes() for part in sorted((Path(run) / "H").iterdir()))


def wh_bytes(run: str | Path) -> bytes:
    """The weights of H and of W, as they lie in the files."""
    return h_bytes(run) + b"".join(matrix_of(part).tobytes() for part in sorted((Path(run) / "W").iterdir()))


def matrix_of(file: Path) -> np.ndarray:
    table = pq.read_table(file)
    return weights_of(table, table.schema.field("weights").type.list_size)


def w_table_of(run: str | Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(part) for part in sorted((Path(run) / "W").iterdir()))


def factors_of(run: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """W (n, k) and H (k, m), float64, as they are written."""
    W = np.concatenate([matrix_of(part) for part in sorted((Path(run) / "W").iterdir())])
    H = np.concatenate([matrix_of(part) for part in sorted((Path(run) / "H").iterdir())])
    return W.astype(np.float64), H.T.astype(np.float64)


def hashed_tfidf(texts: Sequence[str | None], settings: Settings, buckets: np.ndarray) -> sparse.csr_matrix:
    """scikit-learn's hashing, columns `buckets` of it, its TF-IDF."""
    vectorizer = settings.vectorizer
    hashing = HashingVectorizer(
        alternate_sign=False, norm=None, n_features=vectorizer.n_features, **analyzer_options(vectorizer)
    )
    options = {name: getattr(vectorizer, name) for name in ("norm", "use_idf", "smooth_idf", "sublinear_tf")}
    counts = hashing.transform([text or "" for text in texts])[:, buckets]
    X = sparse.csr_matrix(TfidfTransformer(**options).fit_transform(counts))
    X.sort_indices()
    return X


def loss(X: sparse.csr_matrix, W: np.ndarray, H: np.ndarray, beta_loss: str) -> float:
    """scikit-learn's reconstruction_err, written out: the square root of twice the divergence."""
    if beta_loss == "frobenius":
        squares = X.power(2).sum() - 2 * np.sum(W * (X @ H.T)) + np.sum((W.T @ W) * (H @ H.T))
        return float(np.sqrt(squares))
    rows, columns = X.nonzero()
    x, wh = X.data, np.einsum("ij,ij->i", W[rows], H.T[columns])
    divergence = np.sum(x * np.log(x / wh)) - x.sum() + W.sum(axis=0) @ H.sum(axis=1)
    return float(np.sqrt(2 * divergence))


def assert_written_loss(
    run: dict[str, Any], folder: str | Path, texts: Sequence[str | None], settings: Settings
) -> None:
    """W and H as written give run.json's loss on scikit-learn's matrix: order, ids, columns and idf are right."""
    parts = [pq.read_table(part) for part in sorted((Path(folder) / "H").iterdir())]
    X = hashed_tfidf(texts, settings, pa.concat_tables(parts)["bucket"].to_numpy())
    W, H = factors_of(folder)
    np.testing.assert_allclose(loss(X, W, H, settings.model.beta_loss), run["reconstruction_err"], rtol=1e-5)
