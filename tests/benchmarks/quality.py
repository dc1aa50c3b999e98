"""How good topics are: NPMI and agreement with labels, ours by hashed terms against scikit-learn's exact vocabulary.

Both sides get the same settings of terms, the same k and the same seeds, and stop by their own rules: scikit-learn's
TfidfVectorizer and NMF by each of its solvers, and the job `nmf-dask fit` at each size of the hash. One function judges
the top terms of all sides by the words of the corpus (NPMI, windows of ten words), and scikit-learn's NMI judges the
topic of each document's largest weight by its label. A document without a topic is in a class of its own. Weights of
different topics compare where the rows of H are of one size, which only their product with W decides: on all sides they
are scaled to sum to 1. What scikit-learn's W says as it comes is told beside that. Losses are those of each side's own
matrix: where terms share a bucket, that is not quite the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options, problems
from tests.benchmarks.measuring import Report, Run, in_turn, median, run_function

LOSSES = ("frobenius", "kullback-leibler")
JUDGED = ("npmi", "nmi")


def ours(
    corpus: str,
    text_column: str,
    terms: dict[str, Any],
    k: int,
    beta_loss: str,
    random_state: int,
    n_features: int,
    output: str,
    threads: int,
) -> dict[str, Any]:
    """A child: the whole job, with a hash of `n_features` buckets; topics of documents are those that W says."""
    from nmf_dask import Settings, TopicModel, fit

    settings = Settings(
        corpus={"input": corpus, "text_column": text_column},
        vectorizer=terms | {"n_features": n_features},
        model={"n_components": k, "beta_loss": beta_loss, "random_state": random_state},
        cluster={"threads_per_worker": threads},
        output={"output": output},
    )
    run = fit(settings).run
    model = TopicModel.load(output)
    topics = [topic for part in model.W_parts() for topic in part["topic"].fill_null(-1).to_pylist()]
    told = {name: run[name] for name in ("reconstruction_err", "n_iter", "collision_rate")}
    return _kept(output, model.H, model.vocabulary.term.to_pylist(), topics, told)


def theirs(
    corpus: str,
    text_column: str,
    terms: dict[str, Any],
    k: int,
    beta_loss: str,
    random_state: int,
    solver: str,
    init: str,
    max_iter: int,
    output: str,
) -> dict[str, Any]:
    """A child: TfidfVectorizer and NMF, float32."""
    import numpy as np
    import pyarrow.dataset as ds
    from sklearn.decomposition import NMF
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text or "" for text in ds.dataset(corpus).to_table([text_column])[text_column].to_pylist()]
    vectorizer = TfidfVectorizer(dtype=np.float32, **terms)
    X = vectorizer.fit_transform(texts)
    X.sort_indices()  # else its Kullback-Leibler loss is wrong
    nmf = NMF(k, init=init, solver=solver, beta_loss=beta_loss, max_iter=max_iter, random_state=random_state)
    warnings.simplefilter("ignore")
    W = nmf.fit_transform(X)
    topics, as_it_comes = (
        np.where(W.any(axis=1), weights.argmax(axis=1), -1).tolist()
        for weights in (W * nmf.components_.sum(axis=1), W)
    )
    loss = problems.loss(X, W, nmf.components_, beta_loss)
    told = {"reconstruction_err": loss, "n_iter": int(nmf.n_iter_), "collision_rate": 0.0}
    names = vectorizer.get_feature_names_out().tolist()
    return _kept(output, nmf.components_, names, topics, told, as_it_comes)


def _kept(
    output: str,
    H: Any,
    names: list[str],
    topics: list[int],
    told: dict[str, Any],
    as_it_comes: list[int] | None = None,
) -> dict[str, Any]:
    """What is judged later, by one process for all sides: the terms of the topics, and the topics of documents."""
    import numpy as np

    order = np.argsort(-np.asarray(H), axis=1, kind="stable")[:, :50]
    top = [[names[j] for j in row if H[t][j] > 0] for t, row in enumerate(order.tolist())]
    Path(f"{output}.json").write_text(
        json.dumps({"terms": top, "topics": topics, "as_it_comes": as_it_comes})
    )
    return told


def judged(
    corpus: str,
    text_column: str,
    label_column: str | None,
    terms: dict[str, Any],
    n: int,
    files: list[str],
    by_gensim: int,
) -> dict[str, Any]:
    """A child: NPMI and NMI of what each of `files` holds; the first `by_gensim` of them by gensim too."""
    import pyarrow.dataset as ds
    from sklearn.metrics import normalized_mutual_info_score

    from nmf_dask.config import VectorizerSettings
    from nmf_dask.evaluation import TopTerms, coherence, counted, mean

    table = ds.dataset(corpus).to_table([text_column, *([label_column] if label_column else [])])
    # Windows are of all words but stop words, however rare: what one side counts as a term is not asked.
    settings = VectorizerSettings(stop_words=terms["stop_words"])
    found = []
    texts = table[text_column].combine_chunks()
    for number, file in enumerate(files):
        kept = json.loads(Path(file).read_text())
        top = TopTerms.of([topic[:n] for topic in kept["terms"]])
        values = coherence(top, counted(texts, top, settings, (10,)), {"c_npmi": 10})["c_npmi"]
        one = {"npmi": mean(values), "topics_used": len({*kept["topics"]} - {-1})}
        if label_column:
            labels = table[label_column].cast("string").fill_null("").to_pylist()
            one["nmi"] = float(normalized_mutual_info_score(labels, kept["topics"]))
            if kept["as_it_comes"] is not None:
                one["nmi_as_it_comes"] = float(normalized_mutual_info_score(labels, kept["as_it_comes"]))
        if number < by_gensim:
            one["npmi_by_gensim"] = _by_gensim(texts.to_pylist(), kept["terms"], n, settings)
        found.append(one)
    return {"found": found}


def _by_gensim(texts: list[str | None], topics: list[list[str]], n: int, settings: Any) -> float:
    from gensim.corpora import Dictionary
    from gensim.models import CoherenceModel
    from sklearn.feature_extraction.text import CountVectorizer

    analyze = CountVectorizer(stop_words=settings.stop_words).build_analyzer()
    tokens = [analyze(text or "") for text in texts]
    judge = CoherenceModel(
        topics=[topic[:n] for topic in topics], texts=tokens, dictionary=Dictionary(tokens), coherence="c_npmi",
        topn=n, processes=1,
    )  # fmt: skip
    return float(judge.get_coherence())


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = _parser().parse_args(argv)
    report = Report("quality", options.told_of(given), given.threads)
    with tempfile.TemporaryDirectory() as folder:
        for loss in LOSSES if given.loss == "both" else (given.loss,):
            _compare(report, given, loss, folder)
    report.finish(given.json)


def _parser() -> argparse.ArgumentParser:
    made = options.with_k(options.parser(__doc__))
    made.set_defaults(repeat=5)
    made.add_argument("--label-column", help="labels that topics are compared with; none: NPMI alone")
    made.add_argument("--loss", choices=(*LOSSES, "both"), default="frobenius", help="KL takes them minutes")
    made.add_argument("--n-features", type=int, nargs="+", default=(2**20, 2**18), help="buckets of ours")
    made.add_argument("--peers", nargs="+", choices=("cd", "mu"), default=("cd", "mu"), help="for Frobenius")
    made.add_argument("--peer-init", nargs="+", choices=("nndsvd", "nndsvda", "random"), default=("nndsvda",))
    made.add_argument("--peer-max-iter", type=int, default=1000, help="their iterations at most")
    made.add_argument("-n", "--n-top-terms", type=int, default=10, help="terms a topic that are judged")
    return made


def _compare(report: Report, given: argparse.Namespace, loss: str, folder: str) -> None:
    """Fit all sides by seeds in turn, then judge what they found."""
    read = {
        "corpus": given.corpus,
        "text_column": given.text_column,
        "terms": options.terms_of(given),
    }
    outputs: dict[str, list[str]] = {}

    def case(name: str, function: Any, threads: int, more: dict[str, Any]) -> Run:
        files = outputs.setdefault(name, [])
        output = str(Path(folder) / f"{loss}-{list(outputs).index(name)}-{len(files)}")
        files.append(f"{output}.json")
        seed = {"random_state": given.random_state + len(files) - 1, "output": output}
        shared = read | {"k": given.n_components, "beta_loss": loss}
        return run_function(function, shared | seed | more, threads)

    cases = {}
    for solver in given.peers if loss == "frobenius" else ("mu",):
        for init in given.peer_init:
            name = f"scikit-learn {solver}, {init}"
            peer = {"solver": solver, "init": init, "max_iter": given.peer_max_iter}
            cases[name] = partial(case, name, theirs, options.peer_threads(given), peer)
    for n_features in given.n_features:
        power = n_features.bit_length() - 1
        size = f"2^{power}" if n_features == 1 << power else f"{n_features:,}"
        name = f"nmf-dask, {size} buckets"
        own = {"n_features": n_features, "threads": given.threads}
        cases[name] = partial(case, name, ours, given.threads, own)
    runs = in_turn(cases, given.repeat)
    gensim = not report.lacks("gensim's NPMI", ("gensim",))
    for name, some in runs.items():
        asked = {"files": outputs[name], "label_column": given.label_column, "n": given.n_top_terms}
        found = run_function(judged, read | asked | {"by_gensim": int(gensim)}, given.threads)["found"]
        for run, one in zip(some, found, strict=True):
            run.told.update(one)
    report.runs |= {f"{loss}: {name}": some for name, some in runs.items()}
    measures = JUDGED if given.label_column else JUDGED[:1]
    report.tables[f"{loss}: medians of {given.repeat} seeds, with the least and the most"] = [
        _row(name, some, measures) for name, some in runs.items()
    ]


def _row(name: str, runs: list[Run], measures: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"side": name}
    for measure in measures:
        values = [run[measure] for run in runs]
        row[measure.upper()] = median(runs, measure)
        row[f"{measure.upper()} from, to"] = f"{min(values):.4f} {max(values):.4f}"
    as_it_comes = [run for run in runs if "nmi_as_it_comes" in run.told]
    return row | {
        "NMI by W as it comes": median(as_it_comes, "nmi_as_it_comes") if as_it_comes else None,
        "by gensim, off by": (
            abs(runs[0]["npmi_by_gensim"] - runs[0]["npmi"]) if "npmi_by_gensim" in runs[0].told else None
        ),
        "loss": median(runs, "reconstruction_err"),
        "passes": median(runs, "n_iter"),
        "collision rate": median(runs, "collision_rate"),
        "topics used": median(runs, "topics_used"),
        "seconds": median(runs, "seconds"),
    }


if __name__ == "__main__":
    main()
