"""The matrix that all sides factorize, staged once, and a loss that belongs to none of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def stage(corpus: str, text_column: str, terms: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A child: the blocks of a corpus as our own text layer makes them, rows shuffled, as files in `folder`."""
    from nmf_dask.config import CorpusSettings, VectorizerSettings
    from nmf_dask.corpus import open_corpus, read_texts
    from nmf_dask.staging import shuffled, write_block
    from nmf_dask.store import Folder
    from nmf_dask.text import count_texts
    from nmf_dask.vocabulary import TermTable, merge, select, weigh

    settings = VectorizerSettings(**terms)
    opened = open_corpus(CorpusSettings(input=corpus, text_column=text_column))
    counts = [count_texts(read_texts(one, text_column), settings) for one in opened.partitions]
    vocabulary = select(merge([TermTable.of(one) for one in counts]), settings)
    nnz = 0
    for number, one in enumerate(counts):
        X = weigh(one, vocabulary, settings, shuffled(0, number, one.n_documents))
        write_block(Folder(folder) / _block(number), X)
        nnz += len(X.data)
    return {
        "n_rows": opened.n_rows,
        "n_features": len(vocabulary),
        "nnz": nnz,
        "text_bytes": opened.text_bytes,
    }


def described(problem: Any) -> str:
    """The sizes of a staged problem, from what `stage` told."""
    return f"{problem['n_rows']:,} documents, {problem['n_features']:,} features, {problem['nnz']:,} nonzeros"


def _block(number: int) -> str:
    return f"block-{number:05d}.arrow"


def read_blocks(folder: str) -> list[Any]:
    """The staged blocks, as nmf-dask's kernels take them."""
    from nmf_dask.staging import read_block
    from nmf_dask.store import Folder

    return [read_block(Folder(folder) / file.name) for file in sorted(Path(folder).glob("block-*"))]


def read_matrix(folder: str) -> Any:
    """The staged blocks as one SciPy matrix, float32, in memory of its own."""
    import scipy.sparse

    return scipy.sparse.vstack(
        [
            scipy.sparse.csr_matrix((X.data, X.indices, X.indptr), (X.n_rows, X.n_columns))
            for X in read_blocks(folder)
        ],
        format="csr",
    )


def loss(X: Any, W: Any, H: Any, beta_loss: str) -> float:
    """scikit-learn's reconstruction_err, in float64: √(2D), for both sides alike."""
    import numpy as np

    X, W, H = X.astype(np.float64), np.asarray(W, np.float64), np.asarray(H, np.float64)
    if beta_loss == "frobenius":
        squares = X.data @ X.data - 2 * np.sum((X.T @ W).T * H) + np.sum((W.T @ W) * (H @ H.T))
        return float(np.sqrt(max(squares, 0.0)))
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    divergence = W.sum(axis=0) @ H.sum(axis=1) - X.data.sum()
    for low in range(0, X.nnz, 200_000):
        part = slice(low, low + 200_000)
        WH = np.einsum("ik,ik->i", W[rows[part]], H.T[X.indices[part]])
        divergence += X.data[part] @ np.log(X.data[part] / np.maximum(WH, np.finfo(np.float32).eps))
    return float(np.sqrt(2 * max(divergence, 0.0)))
