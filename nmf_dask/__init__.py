"""Topic models of corpora that do not fit one machine: hashed TF-IDF and NMF on Dask, Parquet in and out."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nmf_dask.config import ClusterSettings as ClusterSettings
    from nmf_dask.config import CorpusSettings as CorpusSettings
    from nmf_dask.config import ModelSettings as ModelSettings
    from nmf_dask.config import NightlySettings as NightlySettings
    from nmf_dask.config import OutputSettings as OutputSettings
    from nmf_dask.config import RunSettings as RunSettings
    from nmf_dask.config import Settings as Settings
    from nmf_dask.config import VectorizerSettings as VectorizerSettings
    from nmf_dask.estimators.nmf import NMF as NMF
    from nmf_dask.estimators.tfidf import HashedTfidf as HashedTfidf
    from nmf_dask.jobfile import load_settings as load_settings
    from nmf_dask.kernels.divergence import beta_divergence as beta_divergence
    from nmf_dask.kernels.divergence import frobenius_norm as frobenius_norm
    from nmf_dask.kernels.divergence import kullback_leibler_divergence as kullback_leibler_divergence
    from nmf_dask.model import TopicModel as TopicModel
    from nmf_dask.pipeline import evaluate as evaluate
    from nmf_dask.pipeline import fit as fit
    from nmf_dask.pipeline import nightly as nightly
    from nmf_dask.pipeline import select as select
    from nmf_dask.pipeline import transform as transform
    from nmf_dask.pipeline import update as update
    from nmf_dask.reporting import report as report

# Imported at first use: the command line answers --version and --help without NumPy, Dask or Arrow.
_HOMES = {
    "ClusterSettings": "nmf_dask.config",
    "CorpusSettings": "nmf_dask.config",
    "HashedTfidf": "nmf_dask.estimators.tfidf",
    "ModelSettings": "nmf_dask.config",
    "NMF": "nmf_dask.estimators.nmf",
    "NightlySettings": "nmf_dask.config",
    "OutputSettings": "nmf_dask.config",
    "RunSettings": "nmf_dask.config",
    "Settings": "nmf_dask.config",
    "TopicModel": "nmf_dask.model",
    "VectorizerSettings": "nmf_dask.config",
    "beta_divergence": "nmf_dask.kernels.divergence",
    "evaluate": "nmf_dask.pipeline",
    "fit": "nmf_dask.pipeline",
    "frobenius_norm": "nmf_dask.kernels.divergence",
    "kullback_leibler_divergence": "nmf_dask.kernels.divergence",
    "load_settings": "nmf_dask.jobfile",
    "nightly": "nmf_dask.pipeline",
    "report": "nmf_dask.reporting",
    "select": "nmf_dask.pipeline",
    "transform": "nmf_dask.pipeline",
    "update": "nmf_dask.pipeline",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
