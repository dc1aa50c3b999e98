"""Small Parquet files for tests of the corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.config import CorpusSettings
from nmf_dask.corpus import Corpus, open_corpus, read_texts


def write(path: Path, texts: Any = ("a", "b"), ids: Any = None, **options: Any) -> Path:
    """A file of columns doc_id (where ids are given) and text."""
    columns = {} if ids is None else {"doc_id": ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, "text": texts}), path, **options)
    return path


def opened(*inputs: Path | str, **settings: Any) -> Corpus:
    return open_corpus(CorpusSettings(input=tuple(map(str, inputs)), **settings))


def texts_of(corpus: Corpus) -> Sequence[str | None]:
    column = corpus.settings.text_column
    return [text for partition in corpus.partitions for text in read_texts(partition, column).to_pylist()]


def names_of(corpus: Corpus) -> list[str]:
    return [file.name for file in corpus.files]
