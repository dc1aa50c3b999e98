"""Small transforms for tests: a fitted model, settings, and what lies in an output."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nmf_dask.config import Settings
from nmf_dask.store import Folder, TransformFolder, weights_of
from tests.small_corpora import files_of, settings_of


def job(model: Path, corpus: Path | str, output: Path, /, **sections: Any) -> Settings:
    """Settings of a transform; keys of sections are added."""
    transform = {"model": str(model), **sections.pop("transform", {})}
    return settings_of(Path(corpus), output, transform=transform, **sections)


def table_of(output: Path) -> pa.Table:
    """W as it is committed, compared with its checksums, in the order of its rows."""
    return pa.concat_tables(TransformFolder(Folder(str(output))).tables())


def weights(output: Path) -> np.ndarray:
    table = table_of(output)
    return weights_of(table, table.schema.field("weights").type.list_size)


def parts_of(output: Path) -> dict[str, bytes]:
    """Files of W, byte for byte, whether they are committed or not."""
    return {name: content for name, content in files_of(output).items() if name.startswith("W/")}
