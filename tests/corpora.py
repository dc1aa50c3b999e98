"""Where the real corpora of tests and benchmarks lie, and what to do where they do not."""

from pathlib import Path

import pytest

CORPORA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def corpus_folder(name: str) -> Path:
    """Folder of one real corpus; the calling test is skipped, by the corpus's name, where it is absent."""
    folder = CORPORA / name
    if not folder.is_dir():
        pytest.skip(f"corpus {name} is not at {folder}")
    return folder
