"""Every code point is lowered, stripped, split and counted as Python and scikit-learn do in this process."""

import re
import sys

import numpy as np
import pyarrow as pa
import pytest

from nmf_dask.config import VectorizerSettings
from nmf_dask.text import count_texts
from tests.text_oracle import assert_as_scikit_learn, document_frequencies

CHARACTERS = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF]


def frequencies(texts: list[str], settings: VectorizerSettings) -> dict[str, int]:
    terms = count_texts(pa.array(texts), settings).terms
    return dict(zip(terms["term"].to_pylist(), terms["document_frequency"].to_pylist(), strict=True))


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character_alone_and_between_letters(lowercase: bool) -> None:
    texts = [text for c in CHARACTERS for text in (c, f"x{c}y")]
    settings = VectorizerSettings(token_pattern=r"\w+", lowercase=lowercase)
    expected: dict[str, int] = {}
    for text in texts:
        for word in set(re.findall(r"\w+", text.lower() if lowercase else text)):
            expected[word] = expected.get(word, 0) + 1
    assert frequencies(texts, settings) == expected


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", ["ascii", "unicode"])
def test_every_character_without_its_accent(strip_accents: str, lowercase: bool) -> None:
    texts = ["".join(f"x{c}y " for c in CHARACTERS[i : i + 512]) for i in range(0, len(CHARACTERS), 512)]
    settings = VectorizerSettings(token_pattern=r"\w+", strip_accents=strip_accents, lowercase=lowercase)
    assert frequencies(texts, settings) == document_frequencies(texts, settings)


@pytest.mark.parametrize("analyzer", ["char", "char_wb"])
@pytest.mark.parametrize("strip_accents", [None, "unicode"])
def test_every_character_as_white_space_or_not(analyzer: str, strip_accents: str | None) -> None:
    assigned = [c for c in CHARACTERS if ord(c) < 0x3100 or c.isspace()]
    texts = [f"x{c}y{c}{c}z{c} " for c in assigned]
    settings = VectorizerSettings(analyzer=analyzer, ngram_range=(1, 3), strip_accents=strip_accents)
    assert frequencies(texts, settings) == document_frequencies(texts, settings)


def test_lower_case_is_final() -> None:
    """Documents with a capital sigma are lowered by Python and then by the tables: twice is as once."""
    everything = "".join(CHARACTERS)
    assert everything.lower().lower() == everything.lower()
    for c in CHARACTERS:
        assert c.lower().lower() == c.lower()


def test_sigma_depends_on_what_is_around() -> None:
    texts = ["ΟΔΟΣ", "ΟΔΟΣ ΣΑΣ", "ΑΣ\u0301", "ΑΣ\u0301Α", "Σ", "ΑΣ'Α", "ΑΣ. Σ1Σ", "aΣb", "x", "ΣΣ" * 50]
    settings = VectorizerSettings(token_pattern=r"\w+")
    assert_as_scikit_learn(count_texts(pa.array(texts), settings), texts, settings)


def test_lower_case_can_be_longer_than_the_text() -> None:
    """A buffer as long as the text would overflow: two bytes become three, or a ligature eighteen letters."""
    texts = ["Ⱥ" * 10_000, "İ" * 10_000, "ﷺ" * 10_000]
    for strip_accents in (None, "unicode"):
        settings = VectorizerSettings(strip_accents=strip_accents)
        assert_as_scikit_learn(count_texts(pa.array(texts), settings), texts, settings)


def test_length_is_in_characters_not_bytes() -> None:
    texts = ["é éé 中 中文 \U00010400 \U00010400\U00010401 a ab abc ééé"]
    for pattern in (r"(?u)\b\w\w+\b", r"\w\w\w+", r"\w{2,}"):
        settings = VectorizerSettings(token_pattern=pattern)
        assert_as_scikit_learn(count_texts(pa.array(texts), settings), texts, settings)


def test_ascii_tables_agree_with_those_of_all_of_unicode() -> None:
    """A partition of ASCII alone takes a shorter table; a letter elsewhere must not change its counts."""
    texts = ["".join(map(chr, range(128))) * 2, "Some WORDS_and 12 more"]
    settings = VectorizerSettings()
    alone = count_texts(pa.array(texts), settings)
    together = count_texts(pa.array([*texts, "é"]), settings)
    np.testing.assert_array_equal(alone.indptr, together.indptr[:-1])
    assert alone.terms.equals(together.terms)
