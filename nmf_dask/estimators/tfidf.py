"""`HashedTfidf` in scikit-learn's manner: strings to TF-IDF rows whose columns have names, by hashing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import NmfDaskError
from nmf_dask.estimators.engine import threads
from nmf_dask.estimators.rows import is_dask
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.text import Counts, count_texts
from nmf_dask.vocabulary import TermTable, Vocabulary, merge, select, weigh

SLICE_ROWS = 1 << 14
"""Documents that a thread counts at a time."""


class HashedTfidf(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):  # type: ignore[misc, call-arg]
    """TF-IDF of hashed terms, with the parameters of `sklearn.feature_extraction.text.TfidfVectorizer`.

    Where no two terms share a bucket, the columns hold what `TfidfVectorizer` gives; always, what `HashingVectorizer(
    alternate_sign=False, norm=None)` and then `TfidfTransformer` give in the buckets that are kept. `min_df`, `max_df`
    and `max_features` choose among buckets, by the numbers of all documents; each kept one is named by its most
    frequent term. There are no callables for `analyzer`, `tokenizer` or `preprocessor`.

    Texts are a list (or any iterable) of strings, a NumPy, Arrow, pandas or Polars column, a Dask bag, or a column of
    a Dask DataFrame. A null is an empty document. Of Dask's, `transform` gives a lazy Dask array of sparse chunks, a
    chunk a partition.

    Parameters
    ----------
    n_features : int
        Buckets of the hash, 2**20: more of them, fewer terms that share one.
    dtype : type
        Of the matrix, np.float32 (scikit-learn: np.float64); the numbers are those of float32 either way.
    strip_accents, lowercase, analyzer, stop_words, token_pattern, ngram_range, max_df, min_df, max_features, norm, \
use_idf, smooth_idf, sublinear_tf
        As in `TfidfVectorizer`, with its defaults. `stop_words` may be the path of a file too, one word a line.

    Attributes
    ----------
    idf_ : ndarray (m,)
        Inverse document frequencies.
    collision_rate_ : float
        The share of the columns' document frequency that is not the named term's: 0 where no two terms met, or only
        in documents that hold the named one.
    vocabulary_ : dict
        The column of each name.
    n_documents_ : int
        Documents that were fitted.
    """

    def __init__(
        self,
        *,
        strip_accents: str | None = None,
        lowercase: bool = True,
        analyzer: str = "word",
        stop_words: Any = None,
        token_pattern: str = r"(?u)\b\w\w+\b",
        ngram_range: tuple[int, int] = (1, 1),
        max_df: float = 1.0,
        min_df: float = 1,
        max_features: int | None = None,
        n_features: int = 2**20,
        norm: str | None = "l2",
        use_idf: bool = True,
        smooth_idf: bool = True,
        sublinear_tf: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        self.strip_accents = strip_accents
        self.lowercase = lowercase
        self.analyzer = analyzer
        self.stop_words = stop_words
        self.token_pattern = token_pattern
        self.ngram_range = ngram_range
        self.max_df = max_df
        self.min_df = min_df
        self.max_features = max_features
        self.n_features = n_features
        self.norm = norm
        self.use_idf = use_idf
        self.smooth_idf = smooth_idf
        self.sublinear_tf = sublinear_tf
        self.dtype = dtype

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def fit(self, raw_documents: Any, y: Any = None) -> Self:
        """Choose the columns, and learn their idf. ValueError where no term is left, or for what holds no strings."""
        settings = self.settings()
        self._type(warned=True)
        if is_dask(raw_documents):
            return self._fitted(self._dask_table(raw_documents, settings), settings)
        self._counted(raw_documents, settings)
        return self

    def fit_transform(self, raw_documents: Any, y: Any = None) -> Any:
        """`fit` and `transform` in one: documents are counted once (of Dask's, twice: nothing is kept)."""
        if is_dask(raw_documents):
            return self.fit(raw_documents).transform(raw_documents)
        settings = self.settings()
        self._type(warned=True)
        parts = self._counted(raw_documents, settings)
        return self._stacked(_in_threads(lambda counts: self._weighed(counts, settings), parts))

    def transform(self, raw_documents: Any) -> Any:
        """The TF-IDF matrix (n, m) of documents, CSR; of Dask's a lazy array of such chunks."""
        settings = self.settings()
        check_is_fitted(self, "_vocabulary")
        if is_dask(raw_documents):
            from nmf_dask.distributed.collections import column_parts, each_part, from_parts

            # As it is now: what is lazy is not to follow a fit that comes later.
            parts = each_part(_part_matrix, column_parts(raw_documents), copy.copy(self))
            return from_parts(parts, len(self._vocabulary), self._stacked([]))

        def one(texts: Any) -> Any:
            return self._weighed(_count(texts, settings), settings)

        return self._stacked(_in_threads(one, _slices(_as_arrow(raw_documents))))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """The names (m,) of the columns: the most frequent term of each bucket."""
        check_is_fitted(self, "_vocabulary")
        return np.array(self._vocabulary.term.to_pylist(), object)

    @property
    def idf_(self) -> NDArray[np.float64]:
        check_is_fitted(self, "_vocabulary")
        return self._vocabulary.idf

    @property
    def collision_rate_(self) -> float:
        check_is_fitted(self, "_vocabulary")
        return self._vocabulary.collision_rate

    @property
    def vocabulary_(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.get_feature_names_out())}

    @property
    def n_documents_(self) -> int:
        check_is_fitted(self, "_vocabulary")
        return self._vocabulary.n_documents

    def settings(self) -> VectorizerSettings:
        """These parameters, validated; a ValueError names the one that cannot be."""
        given = self.get_params(deep=False)
        del given["dtype"]
        words = given["stop_words"]
        if words is not None and not isinstance(words, str) and hasattr(words, "__iter__"):
            given["stop_words"] = tuple(map(_plain, words))
        if isinstance(given["ngram_range"], list | tuple) and len(given["ngram_range"]) == 2:
            given["ngram_range"] = shortest, longest = tuple(map(_plain, given["ngram_range"]))
            if shortest > longest:
                told = f"Invalid value for ngram_range={(shortest, longest)}"
                raise ValueError(f"{told} lower boundary larger than the upper boundary.")
        return VectorizerSettings.of({name: _plain(value) for name, value in given.items()})

    def _type(self, warned: bool = False) -> Any:
        if np.dtype(self.dtype) in (np.float32, np.float64):
            return self.dtype
        if warned:  # in scikit-learn's words
            warnings.warn(
                f"Only np.float32 and np.float64 'dtype' should be used. {self.dtype} 'dtype' will be converted to "
                "np.float64.",
                UserWarning,
                stacklevel=3,
            )
        return np.float64

    def _counted(self, documents: Any, settings: VectorizerSettings) -> list[Counts]:
        parts = _in_threads(lambda texts: _count(texts, settings), _slices(_as_arrow(documents)))
        self._fitted(merge([TermTable.of(counts) for counts in parts]), settings)
        return parts

    def _dask_table(self, documents: Any, settings: VectorizerSettings) -> TermTable:
        from nmf_dask.distributed.collections import column_parts, each_part, merged

        table: TermTable = merged(each_part(_part_table, column_parts(documents), settings), merge)
        return table

    def _fitted(self, table: TermTable, settings: VectorizerSettings) -> Self:
        if not len(table.buckets):
            raise ValueError(
                f"empty vocabulary: none of {table.n_documents:,} documents holds a term; perhaps they are empty, or "
                "hold only stop words, or nothing that token_pattern takes for one"
            )
        try:
            self._vocabulary: Vocabulary = select(table, settings)
        except NmfDaskError as error:
            _refuse(error)
        return self

    def _weighed(self, counts: Counts, settings: VectorizerSettings) -> Any:
        return to_scipy(weigh(counts, self._vocabulary, settings)).astype(self._type(), copy=False)

    def _stacked(self, matrices: list[Any]) -> Any:
        if not matrices:
            return sparse.csr_matrix((0, len(self._vocabulary)), dtype=self._type())
        return sparse.csr_matrix(matrices[0] if len(matrices) == 1 else sparse.vstack(matrices, format="csr"))


def _part_table(part: Any, number: int, settings: VectorizerSettings) -> TermTable:
    """A task: what a partition says of its terms."""
    return merge([TermTable.of(_count(texts, settings)) for texts in _slices(_as_arrow(part))])


def _part_matrix(part: Any, number: int, fitted: HashedTfidf) -> Any:
    """A task: a partition's rows."""
    return fitted.transform(part)


def _in_threads(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    if len(items) < 2 or threads() == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(function, items))


def _slices(texts: Any) -> list[Any]:
    return [texts.slice(low, SLICE_ROWS) for low in range(0, max(len(texts), 1), SLICE_ROWS)]


def _count(texts: Any, settings: VectorizerSettings) -> Counts:
    try:
        return count_texts(texts, settings)
    except NmfDaskError as error:
        _refuse(error)


def _refuse(error: NmfDaskError) -> NoReturn:
    """What a job says of its settings, as of parameters."""
    raise ValueError(str(error).replace("vectorizer.", "")) from error


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _as_arrow(documents: Any) -> Any:
    """A column of any home as an Arrow array; ValueError for what is no column, and for what holds no strings."""
    if isinstance(documents, pa.Array | pa.ChunkedArray):
        return documents
    _check_column(documents)
    if hasattr(documents, "to_arrow"):  # Polars
        return documents.to_arrow()
    try:
        documents = documents if hasattr(documents, "__len__") else list(documents)
        if hasattr(documents, "to_numpy") and hasattr(documents, "dtype"):  # pandas, where a null is NaN too
            return pa.Array.from_pandas(documents)
        return pa.array(list(documents), pa.large_string())
    except UnicodeEncodeError:  # halves of surrogate pairs, which are no text
        return pa.array(map(_encodable, documents), pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        if any(isinstance(one, float) and one != one for one in documents):
            raise ValueError(
                "np.nan is an invalid document, expected byte or unicode string. Give None for an empty one."
            ) from error
        raise ValueError(
            f"not every document is a string ({error}); give strings, or None for an empty document"
        ) from error


def _check_column(documents: Any) -> None:
    """ValueError for what is no column of strings, or several."""
    kind = type(documents)
    if isinstance(documents, str | bytes):
        raise ValueError("Iterable over raw text documents expected, string object received.")
    if isinstance(documents, Mapping) or hasattr(kind, "columns") or getattr(documents, "ndim", 1) != 1:
        raise ValueError(
            f"one column of strings is expected, and the documents are a {kind.__name__}: give one of its columns, or "
            "a list of strings"
        )
    if not hasattr(documents, "__iter__"):
        raise ValueError(f"Iterable over raw text documents expected, {kind.__name__} object received.")


def _encodable(document: Any) -> Any:
    return document.encode(errors="replace").decode() if isinstance(document, str) else document
