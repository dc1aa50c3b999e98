"""The model folder on disk or in an object store: files, runs, lock, staged arrays, table formats."""

from nmf_dask.store.arrays import StageDamaged, read_arrays, write_arrays
from nmf_dask.store.folder import Digest, Folder, MissingFileError
from nmf_dask.store.lock import ModelLock
from nmf_dask.store.manifest import Manifest
from nmf_dask.store.runs import (
    FORMAT_VERSION,
    ModelFolder,
    RunFolder,
    chosen_documents,
    open_run,
    run_beside,
    run_id,
)
from nmf_dask.store.tables import (
    H_FEATURES,
    check_csv_columns,
    check_id_name,
    check_kept_names,
    convergence_table,
    flat_table,
    h_table,
    top_features,
    topics_table,
    w_table,
    weights_of,
)
from nmf_dask.store.transforms import Contents, Part, Taken, TransformFolder, part_key

__all__ = [
    "FORMAT_VERSION",
    "H_FEATURES",
    "Contents",
    "Digest",
    "Folder",
    "Manifest",
    "MissingFileError",
    "ModelFolder",
    "ModelLock",
    "Part",
    "RunFolder",
    "StageDamaged",
    "Taken",
    "TransformFolder",
    "check_csv_columns",
    "check_id_name",
    "check_kept_names",
    "chosen_documents",
    "convergence_table",
    "flat_table",
    "h_table",
    "open_run",
    "part_key",
    "read_arrays",
    "run_beside",
    "run_id",
    "top_features",
    "topics_table",
    "w_table",
    "weights_of",
    "write_arrays",
]
