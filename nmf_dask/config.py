"""The job's settings: validated once, then frozen.

Names and meanings are scikit-learn's wherever it has one; where a default differs, the field says why.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A section of the job file: no key but the declared ones, and no change after it was validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CorpusSettings(Section):
    """What is read."""

    input: tuple[str, ...] = Field((), description="a file, a folder, a glob or a list of them: paths or URIs")
    text_column: str = Field("text", description="the column of strings that holds the documents")
    id_column: str | None = Field(None, description="a column to carry into W; without it, the row number as doc_id")
    partition_bytes: PositiveInt = Field(64 * 2**20, description="text bytes a partition aims at")


class VectorizerSettings(Section):
    """Strings to hashed TF-IDF."""

    analyzer: Literal["word", "char", "char_wb"] = Field("word", description="what a term is made of")
    token_pattern: str = Field(r"(?u)\b\w\w+\b", description="what a word is, as a regular expression")
    lowercase: bool = Field(True, description="lower the text first")
    strip_accents: Literal["ascii", "unicode"] | None = Field(None, description="remove accents first")
    stop_words: str | tuple[str, ...] | None = Field(
        None, description='"english", a list of words, or the path of a file with one word a line'
    )
    ngram_range: tuple[PositiveInt, PositiveInt] = Field((1, 1), description="shortest and longest n-gram")
    n_features: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(2**20, description="buckets of the hash")
    min_df: PositiveInt | Share = Field(2, description="drop buckets in fewer documents (count, or share of all)")
    max_df: PositiveInt | Share = Field(0.5, description="drop buckets in more documents (count, or share of all)")
    max_features: PositiveInt | None = Field(50_000, description="keep the buckets of the largest total count")
    use_idf: bool = Field(True, description="weigh by inverse document frequency")
    smooth_idf: bool = Field(True, description="add one document that holds every term")
    sublinear_tf: bool = Field(False, description="1 + ln(count) instead of the count")
    norm: Literal["l1", "l2"] | None = Field("l2", description="scale each document to this norm")


class ModelSettings(Section):
    """The factorization."""

    n_components: PositiveInt = Field(10, description="topics (k)")
    beta_loss: Literal["frobenius", "kullback-leibler"] = Field("frobenius", description="what is minimized")
    solver: Literal["mu", "cd"] = Field("mu", description="multiplicative updates or coordinate descent")
    init: Literal["random", "nndsvd", "nndsvda"] = Field("nndsvda", description="how W and H start")
    max_iter: PositiveInt = Field(200, description="passes over the data at most")
    tol: Annotated[float, Field(ge=0.0)] = Field(1e-4, description="stop when the loss falls by less, relatively")
    alpha_W: Annotated[float, Field(ge=0.0)] = Field(0.0, description="penalty on W")
    alpha_H: Annotated[float, Field(ge=0.0)] | Literal["same"] = Field("same", description="penalty on H")
    l1_ratio: Share = Field(0.0, description="share of L1 in the penalties")
    random_state: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(0, description="seed of everything random")
    normalize: bool = Field(False, description="scale so that each row of H sums to 1 (W takes the factor)")
    rounds: PositiveInt | Literal["auto"] = Field("auto", description="updates of H in a pass, at first")
    sweeps: PositiveInt | Literal["auto"] = Field("auto", description="updates of a block's W at each visit")


class OutputSettings(Section):
    """What is written."""

    output: str | None = Field(None, description="the model folder: a path or URI")
    n_top_terms: PositiveInt = Field(50, description="terms a topic in topics.parquet")


class ClusterSettings(Section):
    """Where it runs."""

    scheduler: str | None = Field(None, description="address or scheduler file of a running cluster; none: embedded")
    workers: PositiveInt | None = Field(None, description="worker processes to start; none: threads of this process")
    threads_per_worker: PositiveInt | None = Field(None, description="threads a worker; none: the cores there are")
    memory_limit: str | None = Field(None, description='memory a worker, such as "4GiB"; none: its share of all')


class RunSettings(Section):
    """How it runs."""

    resume: Literal["auto", "never"] = Field("auto", description="go on from what an earlier, unfinished run left")
    scratch: str | None = Field(None, description="folder of intermediate blocks; none: inside the run's folder")
    checkpoint_every: PositiveInt = Field(5, description="passes between checkpoints")
    log_format: Literal["text", "json"] = Field("text", description="how logs and results are printed")


class Settings(Section):
    """One job."""

    corpus: CorpusSettings = CorpusSettings()
    vectorizer: VectorizerSettings = VectorizerSettings()
    model: ModelSettings = ModelSettings()
    output: OutputSettings = OutputSettings()
    cluster: ClusterSettings = ClusterSettings()
    run: RunSettings = RunSettings()
