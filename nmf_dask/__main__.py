"""``python -m nmf_dask``: the command line, where the console script is not on the path."""

from nmf_dask.cli import run

if __name__ == "__main__":
    run()
