"""Topic models of corpora that do not fit one machine: hashed TF-IDF and NMF on Dask, Parquet in and out."""

__version__ = "0.1.0"
