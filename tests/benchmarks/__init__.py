"""Benchmarks: one program a question, each of which runs nmf-dask and its peers in turn. README.md lists them."""
