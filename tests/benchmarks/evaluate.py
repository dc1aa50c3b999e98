"""Coherence of a model's topics: the job `nmf-dask evaluate` against gensim's CoherenceModel, all four measures.

Both sides judge the same topics by the same tokens and windows. Ours is the job, warm: it reads the Parquet files and
finds words in them within the clock. gensim gets its lists of words, its dictionary and its bags of words before the
clock starts; "of text before" is what making them took.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function
from tests.benchmarks.text import timed
from tests.benchmarks.transform import fitted

PACKAGES = ("gensim",)
MEASURES = ("c_npmi", "c_uci", "c_v", "u_mass")


def ours(corpus: str, text_column: str, model: str, n: int, threads: int, held_out: bool) -> dict[str, Any]:
    """A child: the whole job, twice; the second one counts."""
    from nmf_dask import Settings, evaluate

    settings = Settings(
        corpus={"input": corpus, "text_column": text_column},
        cluster={"threads_per_worker": threads},
        evaluate={"judged_model": model, "n_judged_terms": n, "held_out": held_out},
    )
    evaluate(settings)
    result, wall, cpu = timed(lambda: evaluate(settings))
    values = {name: result.topics[name].to_pylist() for name in MEASURES}
    return {"wall": wall, "cpu": cpu, "values": values, "n_documents": result.told["n_documents"]}


def theirs(corpus: str, text_column: str, model: str, n: int, threads: int) -> dict[str, Any]:
    """A child: gensim with as many processes as threads."""
    import resource

    import pyarrow.dataset as ds
    from gensim.corpora import Dictionary
    from gensim.models import CoherenceModel
    from sklearn.feature_extraction.text import CountVectorizer

    from nmf_dask import TopicModel

    loaded = TopicModel.load(model)
    analyze = CountVectorizer(stop_words=loaded.vectorizer_settings.stop_words).build_analyzer()
    texts = [text or "" for text in ds.dataset(corpus).to_table([text_column])[text_column].to_pylist()]

    def words() -> Any:
        tokens = [analyze(text) for text in texts]
        dictionary = Dictionary(tokens)
        return tokens, dictionary, [dictionary.doc2bow(one) for one in tokens]

    (tokens, dictionary, bags), text_seconds, text_cpu = timed(words)
    topics = [[term for term, _ in topic.terms] for topic in loaded.topics(n)]

    def work() -> dict[str, list[float]]:
        return {
            name: [
                float(one)
                for one in CoherenceModel(
                    topics=topics, texts=tokens, corpus=bags, dictionary=dictionary, coherence=name,
                    processes=threads, topn=n,
                ).get_coherence_per_topic()
            ]
            for name in MEASURES
        }  # fmt: skip

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    values, wall, cpu = timed(work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of its processes, which it waits for
    cpu += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = {"wall": wall, "cpu": cpu, "values": values, "n_documents": len(texts)}
    return told | {"text": text_seconds, "text_cpu": text_cpu}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = options.with_k(options.parser(__doc__))
    made.add_argument("-n", "--n-top-terms", type=int, default=10, help="terms a topic")
    given = made.parse_args(argv)
    report = Report("evaluate", options.told_of(given), given.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        shared = {"corpus": given.corpus, "text_column": given.text_column}
        settings = {"n_components": given.n_components, "random_state": given.random_state}
        terms = options.terms_of(given)
        run_function(fitted, shared | {"terms": terms, "model": settings, "output": model}, given.threads)
        shared |= {"model": model, "n": given.n_top_terms}
        own = shared | {"threads": given.threads}
        us, whole, them = "nmf-dask evaluate, coherence", "and held-out loss", "gensim's CoherenceModel"
        cases = {
            us: partial(run_function, ours, own | {"held_out": False}, given.threads),
            whole: partial(run_function, ours, own | {"held_out": True}, given.threads),
        }
        if not report.lacks(them, PACKAGES):
            threads = options.peer_threads(given)
            cases[them] = partial(run_function, theirs, shared | {"threads": threads}, threads)
        report.runs = in_turn(cases, given.repeat)
    report.tables["four measures of coherence, medians"] = [
        _row(name, runs, report.runs[us]) for name, runs in report.runs.items()
    ]
    report.finish(given.json)


def _row(name: str, runs: list[Run], us: list[Run]) -> dict[str, Any]:
    told, own = runs[0].told, us[0].told
    furthest = max(
        abs(a - b)
        for measure in MEASURES
        for a, b in zip(told["values"][measure], own["values"][measure], strict=True)
    )
    return {
        "side": name,
        "documents": told["n_documents"],
        "seconds": median(runs, "wall"),
        "cpu seconds": median(runs, "cpu"),
        "theirs / ours": median(runs, "wall") / median(us, "wall"),
        "by cpu": median(runs, "cpu") / median(us, "cpu"),
        "of text before": told.get("text"),
        "largest difference": furthest,
        "MiB peak": mebibytes(median(runs, "peak_memory")),
    }


if __name__ == "__main__":
    main()
