"""Factorization and vectorizer in scikit-learn's manner: `NMF` and `HashedTfidf`."""
