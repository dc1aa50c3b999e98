"""Sections that a single command reads, beside those of the fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from nmf_dask.config.section import Section
from nmf_dask.config.values import History, Name, Numbers


class TransformSettings(Section):
    """New documents under a fitted model; read by `nmf-dask transform` alone."""

    model: Name | None = Field(
        None,
        description="the model folder, or one run in it: a path or URI",
        examples=["s3://bucket/model"],
    )
    new_only: bool = Field(
        False,
        description="keep the W of files with the same path, size and time of change, and make that of the others",
    )
    loss: bool = Field(
        False,
        description="measure how far the documents are from WH as well (relative_loss): a few hundredths longer",
    )


class EvaluateSettings(Section):
    """How good the topics of a model are; read by `nmf-dask evaluate` alone."""

    judged_model: Name | None = Field(
        None,
        description="the model folder, or one run in it: a path or URI",
        examples=["s3://bucket/model"],
    )
    result_file: Name | None = Field(
        None,
        description="file for the result beside stdout: .json (all of it) or .parquet (one row a topic)",
        examples=["evaluation.parquet"],
    )
    n_judged_terms: Annotated[int, Field(ge=2)] = Field(10, description="terms a topic that are judged")
    window: PositiveInt | Literal["auto"] = Field(
        "auto", description='words of a sliding window; "auto": gensim\'s, 10 for NPMI and C_uci, 110 for C_v'
    )
    held_out: bool = Field(
        True, description="also fold in half of each document, for the loss of the other half"
    )
    label_column: Name | None = Field(
        None, description="column of labels to compare topics with; none: nothing", examples=["label"]
    )
    compare: Name | None = Field(
        None,
        description="another model, or run, whose topics are matched with these: a path or URI; none: nothing",
        examples=["model/runs/0123456789abcdef"],
    )


class SelectSettings(Section):
    """Choosing the number of topics; read by `nmf-dask select` alone, in place of model.n_components."""

    candidates: Numbers = Field(
        (),
        description='numbers of topics to try: a list, or a range "from:to:step" that ends with `to`',
        examples=[[5, 10, 20, 40]],
    )
    fits: Annotated[int, Field(ge=2)] = Field(10, description="fits of perturbed data for each of them")
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="rows of a fit, drawn with replacement: a share of all"
    )
    stability: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.5, description="silhouette that each topic must reach for its k to count as stable"
    )
    commit: bool = Field(
        False,
        description="also fit the recommended number of topics to the whole corpus, as a run of the model",
    )


class UpdateSettings(Section):
    """New documents into a model, whose topics go on; read by `nmf-dask update` alone."""

    base: Name | None = Field(
        None,
        description="model folder, or the run in it that the new one starts from and goes beside; none: output.output",
        examples=["s3://bucket/model"],
    )
    history: History = Field(
        "keep",
        description="what documents of earlier runs count, whose text is not read again: "
        '"keep", "discount=0.9" (each update, that share of what they counted), "forget"; '
        '"reread": the input is all of the corpus, and is read again',
    )

    @property
    def weight(self) -> float:
        """Of what earlier runs kept: from 0 to 1."""
        return 1.0 if self.history == "keep" else float(self.history.partition("=")[2] or 0)

    @property
    def rereads(self) -> bool:
        """Whether the input is all of the corpus."""
        return self.history == "reread"


class NightlySettings(Section):
    """Every night: what came is transformed, the model updated when it is due; read by `nmf-dask nightly` alone."""

    weights: Name | None = Field(
        None,
        description="folder of the weights, one below it for each run of the model in output.output: a path or URI",
        examples=["s3://bucket/weights"],
    )
    every: PositiveInt | None = Field(
        7, description="update at this many nights with new files since the last; none: not by number"
    )
    loss_rise: Annotated[float, Field(ge=0.0)] | Literal["auto"] | None = Field(
        "auto",
        description="update when the relative loss of new documents is above that of the run's own by more than this "
        'share of it; "auto": 0.002 for Frobenius, whose loss of text is near 1 whatever comes, 0.02 for '
        'Kullback-Leibler; "none": not by loss',
    )
