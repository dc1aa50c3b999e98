"""W of documents under an H that is given: strings to weights, each document by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.config import ModelSettings, VectorizerSettings
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import Csr
from nmf_dask.vocabulary import Vocabulary, weigh

Floats = NDArray[np.float32]


class Folded(NamedTuple):
    """W (n, k) of documents; whether each has a known term (n,); how many are no valid UTF-8; their rows of X."""

    W: Floats
    has_terms: NDArray[np.bool_]
    n_invalid: int
    X: Csr


@dataclass(frozen=True, eq=False)
class Folding:
    """A model as far as new documents need it: its way from strings to rows of X, and its H. Picklable."""

    vectorizer: VectorizerSettings
    vocabulary: Vocabulary
    n_components: int
    fixed: FixedH

    @classmethod
    def of(
        cls, H: Floats, vocabulary: Vocabulary, vectorizer: VectorizerSettings, model: ModelSettings
    ) -> Folding:
        """From `H` (k, m), whose columns are those of `vocabulary`."""
        return cls(vectorizer, vocabulary, len(H), FixedH.of(pad_H(H), model))

    def __call__(self, texts: Any) -> Folded:
        """W of an Arrow array of strings; a null is an empty document. What it takes grows with their number."""
        from nmf_dask.text import count_texts

        counts = count_texts(texts, self.vectorizer)
        X = weigh(counts, self.vocabulary, self.vectorizer)
        W = np.ascontiguousarray(self.fixed.weights(X)[:, : self.n_components])
        return Folded(W, np.diff(X.indptr) > 0, counts.n_invalid, X)
