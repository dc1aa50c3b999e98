"""The model folder on disk or in an object store: files, runs, lock, staged arrays, table formats."""

from nmf_dask.store.arrays import StageDamaged, read_arrays, write_arrays
from nmf_dask.store.folder import Digest, Folder, MissingFileError
from nmf_dask.store.lock import ModelLock
from nmf_dask.store.manifest import Manifest
from nmf_dask.store.runs import FORMAT_VERSION, ModelFolder, RunFolder, open_run, run_id
from nmf_dask.store.tables import (
    H_FEATURES,
    check_id_name,
    convergence_table,
    h_table,
    top_features,
    topics_table,
    w_table,
    weights_of,
)

__all__ = [
    "FORMAT_VERSION",
    "H_FEATURES",
    "Digest",
    "Folder",
    "Manifest",
    "MissingFileError",
    "ModelFolder",
    "ModelLock",
    "RunFolder",
    "StageDamaged",
    "check_id_name",
    "convergence_table",
    "h_table",
    "open_run",
    "read_arrays",
    "run_id",
    "top_features",
    "topics_table",
    "w_table",
    "weights_of",
    "write_arrays",
]
