"""Corpora of a known number of topics: unequal sizes, documents of two topics, words that topics share, and noise."""

import numpy as np

WORDS = 1200
OF_A_TOPIC = 60


def planted_texts(
    n_topics: int, seed: int = 0, n: int = 2000, length: int = 60, noise: float = 0.25
) -> list[str]:
    """`n` documents of `length` words, a share `noise` of which says nothing; the largest topic is four times the
    least.
    """
    random = np.random.default_rng([seed, n_topics])
    topics = np.zeros((n_topics, WORDS))
    for row in topics:
        row[random.choice(WORDS, OF_A_TOPIC, replace=False)] = random.dirichlet(np.full(OF_A_TOPIC, 0.4))
    background = random.permutation(1 / np.arange(1, WORDS + 1))
    sizes = random.permutation(np.linspace(1, 4, n_topics))
    first, second = random.choice(n_topics, (2, n), p=sizes / sizes.sum())
    share = random.uniform(0.5, 1, n)[:, np.newaxis]
    mixed = (1 - noise) * (share * topics[first] + (1 - share) * topics[second])
    mixed += noise * background / background.sum()
    words = np.array([f"w{i:04d}" for i in range(WORDS)])
    return [" ".join(random.choice(words, length, p=row / row.sum())) for row in mixed]
