"""One block at a time: compiled arithmetic that knows nothing of Parquet, Dask or settings."""
