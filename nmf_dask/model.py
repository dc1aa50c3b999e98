"""A fitted model, read from its run's folder: its topics, its H, and W for new documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.config import ModelSettings, VectorizerSettings
from nmf_dask.corpus.features import MAPS
from nmf_dask.errors import InputDataError
from nmf_dask.exports import find_topics, table_of, to_pyldavis, to_sklearn, top_documents, topic_info
from nmf_dask.kernels.matrices import LARGEST
from nmf_dask.store import H_FEATURES, Folder, Manifest, RunFolder, open_run, top_features, weights_of
from nmf_dask.vocabulary import Vocabulary

if TYPE_CHECKING:
    from nmf_dask.folding import Folding

SLICE_ROWS = 1 << 15
"""Documents that `transform` counts and weighs at a time: what it needs beside W does not grow with n."""


@dataclass(frozen=True)
class Topic:
    """A topic: its number, its share of the corpus, its terms with their weights, the largest first."""

    topic: int
    share: float
    terms: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class TopicModel:
    """A finished run in memory."""

    uri: str
    """The run's own folder."""
    run: dict[str, Any]
    """Content of run.json."""
    vectorizer_settings: VectorizerSettings
    """How the run turned strings into terms."""
    model_settings: ModelSettings
    """How the run factorized."""
    vocabulary: Vocabulary
    H: NDArray[np.float32]
    """(k, m), topics by features; read-only."""

    @classmethod
    def load(cls, uri: str) -> TopicModel:
        """Read the model that a path or URI means: a model folder (its last run) or one run's folder.

        Raises InputDataError where there is no finished run, where it has another format version, and where
        run.json or a part of H is missing or not what was written (the message names the file); RetryableError
        where the store does not answer.
        """
        folder = open_run(uri)
        manifest = Manifest.load(folder.folder)
        run = manifest.read_json("run.json")
        vectorizer, settings, n_documents, n_features = _told(folder, run)
        table, weights = _read_H(manifest, settings.n_components, n_features)
        H = np.ascontiguousarray(weights.T)
        H.flags.writeable = False
        return cls(
            uri=folder.folder.uri,
            run=run,
            vectorizer_settings=vectorizer,
            model_settings=settings,
            vocabulary=Vocabulary.from_table(table, n_documents),
            H=H,
        )

    @property
    def n_components(self) -> int:
        """Topics (k)."""
        return len(self.H)

    @property
    def of_counts(self) -> bool:
        """Whether it was fitted to counts, and not to texts."""
        return (self.run.get("config") or {}).get("corpus", {}).get("feature_column") is not None

    @property
    def reconstruction_err(self) -> float:
        """Of the fit, over the whole corpus: the square root of twice the beta-divergence."""
        told = self.run.get("reconstruction_err")
        return float("nan") if told is None else float(told)

    def topics(self, n: int = 10) -> list[Topic]:
        """The topics in the order of their numbers, with at most `n` terms each; a weight of zero is no term.

        The share is NaN where the run does not tell it.
        """
        shares = {int(one["topic"]): float(one["share"]) for one in self.run.get("topics") or ()}
        top = top_features(self.H, n)
        term = self.vocabulary.term
        return [
            Topic(
                topic=topic,
                share=shares.get(topic, float("nan")),
                terms=tuple((term[int(j)].as_py(), float(row[j])) for j in top[topic] if row[j] > 0),
            )
            for topic, row in enumerate(self.H)
        ]

    def W_parts(self) -> Iterator[pa.Table]:
        """The W of the corpus, a table a partition: the id column, `topic` and `weights` (k numbers a document).

        In the order of the corpus, read one after the other. Raises InputDataError, naming the file, where one is
        missing or not what was written.
        """
        manifest = Manifest.load(Folder(self.uri))
        for name in manifest.parts("W"):
            yield manifest.read_parquet(name)

    def transform(
        self, texts: Sequence[str | Mapping[str, float] | None] | pa.Array | pa.ChunkedArray
    ) -> NDArray[np.float32]:
        """W (n, k) float32 of new documents under this H, with the run's own vocabulary and idf.

        As scikit-learn's NMF.transform of the same H run to convergence; no document looks at another. A null is an
        empty document; a document with no known term gets a row of zeros. A model of counts takes dicts of names to
        numbers, or an Arrow array of maps. Raises TypeError for one string instead of several, and for texts where
        counts are asked for, or the reverse; ValueError for a number that is not from 0 to 1e15.
        """
        documents, folding = (_counts if self.of_counts else _documents)(texts), self.folding()
        W = np.zeros((len(documents), self.n_components), np.float32)
        for start in range(0, len(documents), SLICE_ROWS):
            W[start : start + SLICE_ROWS] = folding(documents.slice(start, SLICE_ROWS)).W
        return W

    def topic_info(self, n: int = 10) -> pa.Table:
        """A row a topic: `topic`, `name` (its number and first four terms), `share`, `n_documents`, `terms` (`n`).

        `n_documents` counts those whose largest weight it is; null, and a share of NaN, where the run does not tell.
        """
        return topic_info(self, n)

    def top_documents(self, topic: int, n: int = 10) -> pa.Table:
        """The `n` documents of the largest weight in a topic: the id column and `weight`, the largest first.

        W is read a partition at a time. Raises ValueError for a topic that is not there.
        """
        return top_documents(self, topic, n)

    def find_topics(self, query: str, n: int = 5) -> list[tuple[int, float]]:
        """Up to `n` topics that words are about, each with its share of what the model makes of them, largest first.

        The query is treated as a document (`transform`); one with no known term has no topics. Of a model of counts it
        is the name of a column.
        """
        return find_topics(self, query, n)

    def to_arrow(self, what: str = "topics") -> pa.Table:
        """A table: "topics" (topic, rank, term, weight; 50 terms each), "info" (`topic_info`), "H" or "W".

        Raises ValueError for another name.
        """
        return table_of(self, what)

    def to_pandas(self, what: str = "topics") -> Any:
        """`to_arrow` as a pandas data frame."""
        return self.to_arrow(what).to_pandas()

    def to_polars(self, what: str = "topics") -> Any:
        """`to_arrow` as a Polars data frame; Polars has to be installed."""
        import polars

        return polars.from_arrow(self.to_arrow(what))

    def to_sklearn(self) -> tuple[Any, Any]:
        """A vectorizer and an NMF of scikit-learn's own, fitted, that transform as this model does.

        `nmf.transform(vectorizer.transform(texts))` is W up to scikit-learn's tolerance, which is set low. The
        vectorizer is a Pipeline of HashingVectorizer, ColumnTransformer and TfidfTransformer; pickles of both ask for
        scikit-learn alone. The names of the columns are `vocabulary.term`. Raises ValueError for a model of counts,
        which has no vectorizer.
        """
        return to_sklearn(self)

    def to_pyldavis(self) -> dict[str, Any]:
        """The arguments of `pyLDAvis.prepare`, from the W of the corpus, which is read into memory.

        NMF knows weights where pyLDAvis expects words: a document is as long as its row of WH, a term as frequent as
        its column. Documents in no topic, and terms of no topic, are left out.
        """
        return to_pyldavis(self)

    def folding(self) -> Folding:
        """What gives new documents their W: of the model no more than that."""
        from nmf_dask.folding import Folding

        return Folding.of(self.H, self.vocabulary, self.vectorizer_settings, self.model_settings)


def _documents(texts: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if isinstance(texts, str | bytes):
        raise TypeError("transform takes a sequence of documents, not one string; put it into a list")
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        if pa.types.is_map(texts.type):
            raise TypeError("the model is of texts, and these are counts (maps)")
        return texts
    return pa.array(texts, pa.large_string())


def _counts(rows: Any) -> pa.Array | pa.ChunkedArray:
    if not isinstance(rows, pa.Array | pa.ChunkedArray):
        if isinstance(rows, Mapping) or not all(row is None or isinstance(row, Mapping) for row in rows):
            raise TypeError("the model is of counts: transform takes a list of dicts of names to numbers")
        rows = pa.array([None if row is None else list(row.items()) for row in rows], MAPS)
    if not pa.types.is_map(rows.type):
        raise TypeError(f"the model is of counts: transform takes an array of maps, not of {rows.type}")
    rows = rows.cast(MAPS)
    chunks = rows.chunks if isinstance(rows, pa.ChunkedArray) else [rows]
    values = np.concatenate([np.empty(0), *(chunk.items.fill_null(np.nan).to_numpy() for chunk in chunks)])
    if not np.all((values >= 0) & (values <= LARGEST)):
        raise ValueError(f"counts are numbers from 0 to {LARGEST:g}")
    return rows


def _told(folder: RunFolder, run: dict[str, Any]) -> tuple[VectorizerSettings, ModelSettings, int, int]:
    """What run.json must tell: settings of vectorizer and model, documents, features."""
    try:
        config = run["config"]
        # As JSON, where a list stands for a tuple.
        vectorizer = VectorizerSettings.model_validate_json(json.dumps(config["vectorizer"]))
        model = ModelSettings.model_validate_json(json.dumps(config["model"]))
        # Frequencies are out of all documents; those of an update's own run are the ones that were new.
        before = (run.get("updated_from") or {}).get("n_documents", 0)
        return vectorizer, model, int(run["n_documents"]) + int(before), int(run["n_features"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = " ".join(str(error).split())
        raise InputDataError(
            f"{folder.folder / 'run.json'} does not tell what a model needs ({detail}): it was changed, or "
            "written by another version. Restore it, or fit again"
        ) from error


def _read_H(manifest: Manifest, k: int, m: int) -> tuple[pa.Table, NDArray[np.float32]]:
    """The features (m rows, in order) and their weights (m, k)."""
    names = manifest.parts("H")
    if not names:
        raise InputDataError(f"the manifest of {manifest.run} names no part of H. Fit again")
    features, weights = zip(*(_h_part(manifest, name, k) for name in names), strict=True)
    table = pa.concat_tables(features)
    number = table["feature"].to_numpy()
    if len(number) != m or not np.array_equal(number, np.arange(m)):
        raise InputDataError(
            f"the parts of H in {manifest.run} hold {len(number)} features where run.json tells of {m}, "
            "or not in order: a part is missing or from another run. Restore it, or delete that folder and fit again"
        )
    return table, np.concatenate(weights)


def _h_part(manifest: Manifest, name: str, k: int) -> tuple[pa.Table, NDArray[np.float32]]:
    table = manifest.read_parquet(name)
    try:
        weights = weights_of(table, k)
        return table.select(H_FEATURES.names).cast(H_FEATURES), weights
    except (KeyError, ValueError) as error:
        raise InputDataError(
            f"{manifest.run / name} is not a part of this H ({error.args[0]}). Restore it, or fit again"
        ) from error
