"""scikit-learn's own tests, with our classes in the place of theirs; docs/estimators.md tells of those left out."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from sklearn.decomposition import MiniBatchNMF
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)

import nmf_dask
from tests.scikit_learn_tests import those_of, with_ours

THEIRS = with_ours("sklearn.decomposition.tests.test_nmf", {"NMF": nmf_dask.NMF}, [MiniBatchNMF])
# Without Frobenius, whose W we take to the minimum under the last H, where theirs is that of the last iteration.
THEIRS["test_nmf_minibatchnmf_equivalence"].__dict__["pytestmark"] = [
    pytest.mark.parametrize("beta_loss", [-0.5, 0, 0.5, 1, 1.5, 2.5]).mark
]
# Compares the class with a function of scikit-learn's, its transform too: ours goes on to the minimum.
OTHER = "test_non_negative_factorization_consistency"
# No test of a class, or of MiniBatchNMF alone.
ABSENT = (
    "test_minibatch",
    "_mbnmf",
    "_initialize_",
    "_beta_divergence",
    "_special_sparse_dot",
    "_underflow",
    "_decreasing",
)
ABSENT += (
    "_non_negative_factorization_",
    "_negative_beta_loss",
    "_multiplicative_update_sparse",
    "_no_h_update",
)
ABSENT += ("_w_h_not_used_warning",)

pytestmark = pytest.mark.filterwarnings("ignore")  # as scikit-learn runs them
globals().update(
    {name: test for name, test in THEIRS.items() if name != OTHER and not any(a in name for a in ABSENT)}
)


def test_all_that_the_interface_shares_are_run() -> None:
    """A test that scikit-learn renames or adds is met here: it is run, or it is named above."""
    run = {name for name in globals() if name.startswith("test_")} & THEIRS.keys()
    assert len(run) == 20, sorted(run)


# Of the tests of HashingVectorizer, those that ask for nothing that HashedTfidf has not.
TEXT = with_ours(
    "sklearn.feature_extraction.tests.test_text",
    {"HashingVectorizer": nmf_dask.HashedTfidf},
    [CountVectorizer, TfidfVectorizer, TfidfTransformer],
)
test_vectorizer_string_object_as_input = TEXT["test_vectorizer_string_object_as_input"]
test_vectorizers_invalid_ngram_range = TEXT["test_vectorizers_invalid_ngram_range"]
test_hashingvectorizer_nan_in_docs = TEXT["test_hashingvectorizer_nan_in_docs"]
test_vectorizers_do_not_have_set_output = TEXT["test_vectorizers_do_not_have_set_output"]
# docs/estimators.md says why not.
CANNOT = {
    "test_callable_analyzer_change_behavior",
    "test_callable_analyzer_error",
    "test_callable_analyzer_reraise_error",
    "test_hashed_binary_occurrences",
    "test_hashing_vectorizer",
    "test_hashing_vectorizer_requires_fit_tag",
    "test_hashing_vectorizer_transform_without_fit",
    "test_n_features_in",
    "test_nonnegative_hashing_vectorizer_result_indices",
    "test_pickling_vectorizer",
    "test_stop_word_validation_custom_preprocessor",
    "test_unused_parameters_warn",
    "test_vectorizer_stop_words_inconsistent",
    "test_vectorizer_unicode",
    "test_word_analyzer_unigrams",
}
# And of those of TfidfVectorizer.
TFIDF = with_ours(
    "sklearn.feature_extraction.tests.test_text",
    {"TfidfVectorizer": nmf_dask.HashedTfidf},
    [CountVectorizer, HashingVectorizer],
)
test_vectorizer_max_features = TFIDF["test_vectorizer_max_features"]
test_tfidf_vectorizer_type = TFIDF["test_tfidf_vectorizer_type"]
test_vectorizer_pipeline_cross_validation = TFIDF["test_vectorizer_pipeline_cross_validation"]


def test_every_test_of_hashing_vectorizer_is_run_or_told_of() -> None:
    """One that scikit-learn renames or adds is met here."""
    run = {name for name, test in globals().items() if test is TEXT.get(name)}
    met = those_of(TEXT, "HashingVectorizer", nmf_dask.HashedTfidf)
    assert met == run | CANNOT
    page = (Path(__file__).resolve().parents[1] / "docs" / "estimators.md").read_text("utf-8")
    told = re.findall(r"`(test_[\w*]+)`", page)
    assert [name for name in sorted(met) if not any(fnmatch(name, each) for each in told)] == []
