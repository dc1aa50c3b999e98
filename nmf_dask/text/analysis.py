"""What the settings ask of the text: which terms there are, and whether compiled code can find them."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import ConfigurationError

# The patterns whose matches are the maximal runs of \w of some least length.
_RUNS = re.compile(r"(?:\(\?u\))?(?:\\b)?(?:(?P<letters>(?:\\w)+)\+|\\w\{(?P<least>\d+),\})(?:\\b)?")


@dataclass(frozen=True)
class Analysis:
    """How text becomes terms; the names are scikit-learn's."""

    settings: VectorizerSettings
    stop_words: frozenset[str] | None
    min_length: int | None  # least length of a word; None where the token pattern is another than runs of \w

    @property
    def compiled(self) -> bool:
        """Whether the kernels find these terms; else scikit-learn's own analyzer does."""
        return self.settings.analyzer != "word" or self.min_length is not None


def analysis_of(settings: VectorizerSettings) -> Analysis:
    """Read the stop words and the token pattern; raises ConfigurationError where a file cannot be read."""
    if settings.analyzer != "word":
        return Analysis(settings, None, None)
    return Analysis(settings, _stop_words(settings.stop_words), least_length(settings.token_pattern))


def least_length(token_pattern: str) -> int | None:
    """The n of a pattern that matches the maximal runs of n or more word characters, or None for another."""
    match = _RUNS.fullmatch(token_pattern)
    if match is None:
        return None
    least = int(match["least"]) if match["least"] else len(match["letters"]) // 2
    return least or None


def _stop_words(choice: str | tuple[str, ...] | None) -> frozenset[str] | None:
    if choice is None:
        return None
    if choice == "english":
        return _english()
    if isinstance(choice, tuple):
        return frozenset(choice)
    try:
        lines = Path(choice).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"vectorizer.stop_words names the file {choice!r}, which cannot be read: {reason}; "
            'give "english", a list of words, or a file with one word a line'
        ) from None
    return frozenset(word for line in lines if (word := line.strip()))


@cache
def _english() -> frozenset[str]:
    """scikit-learn's list, without the second that importing scikit-learn takes."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "feature_extraction" / "_stop_words.py"
        spec = importlib.util.spec_from_file_location("_sklearn_stop_words", file)
        if file.is_file() and spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return frozenset(module.ENGLISH_STOP_WORDS)
    from sklearn.feature_extraction import text

    return frozenset(text.ENGLISH_STOP_WORDS)
