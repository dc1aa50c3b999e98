"""scikit-learn's own tests, with our classes in the place of theirs; docs/estimators.md tells of those left out."""

from __future__ import annotations

import pytest
from sklearn.decomposition import MiniBatchNMF
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

import nmf_dask
from tests.scikit_learn_tests import with_ours

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
    [CountVectorizer, TfidfVectorizer],
)
test_vectorizer_string_object_as_input = TEXT["test_vectorizer_string_object_as_input"]
test_vectorizers_invalid_ngram_range = TEXT["test_vectorizers_invalid_ngram_range"]
test_hashingvectorizer_nan_in_docs = TEXT["test_hashingvectorizer_nan_in_docs"]
test_vectorizers_do_not_have_set_output = TEXT["test_vectorizers_do_not_have_set_output"]
