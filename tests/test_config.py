"""Settings: what is accepted, what is refused and how that is said, and where a value comes from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from nmf_dask.allowed import describe
from nmf_dask.config import (
    ClusterSettings,
    CorpusSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    VectorizerSettings,
    parse_bytes,
    redact,
)
from nmf_dask.errors import ConfigurationError
from nmf_dask.jobfile import (
    KEYS,
    Given,
    load_settings,
    resolve,
)


def write_job(folder: Path, text: str) -> str:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(**sources: object) -> str:
    """The message with which settings are refused."""
    sources.setdefault("environ", {})
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**sources)  # type: ignore[arg-type]
    return str(caught.value)


class TestPrecedence:
    VARIABLE = "NMF_DASK_MODEL__N_COMPONENTS"

    def test_default(self):
        assert load_settings(environ={}) == Settings()

    def test_file_before_default(self, tmp_path):
        job = write_job(tmp_path, "[model]\nn_components = 7")
        assert load_settings(job, {}).model.n_components == 7

    def test_environment_before_file(self, tmp_path):
        job = write_job(tmp_path, "[model]\nn_components = 7\nmax_iter = 3")
        settings = load_settings(job, {self.VARIABLE: "8"})
        assert (settings.model.n_components, settings.model.max_iter) == (8, 3)

    def test_override_before_environment(self, tmp_path):
        job = write_job(tmp_path, "[model]\nn_components = 7")
        settings = load_settings(job, {self.VARIABLE: "8"}, {"model.n_components": 9})
        assert settings.model.n_components == 9

    def test_overrides_in_sections(self):
        assert load_settings(environ={}, overrides={"model": {"tol": 0.5}}).model.tol == 0.5

    def test_process_environment_unless_given(self, monkeypatch):
        monkeypatch.setenv(self.VARIABLE, "8")
        assert load_settings().model.n_components == 8

    def test_a_wrong_value_that_lost_is_not_an_error(self):
        environ = {self.VARIABLE: "many"}
        assert load_settings(environ=environ, overrides={"model.n_components": 9}).model.n_components == 9

    def test_upper_case_names_reach_mixed_case_keys(self):
        assert load_settings(environ={"NMF_DASK_MODEL__ALPHA_W": "2"}).model.alpha_W == 2.0

    def test_other_variables_are_left_alone(self):
        assert load_settings(environ={"NMF_DASK_HOME": "/x", "DASK_MODEL__K": "1"}) == Settings()


class TestAccepted:
    def test_integers_where_a_float_is_meant(self):
        model = ModelSettings(alpha_W=1, tol=0)
        assert (model.alpha_W, model.tol) == (1.0, 0.0)

    def test_lists_where_a_tuple_is_meant(self):
        assert VectorizerSettings(ngram_range=[1, 3]).ngram_range == (1, 3)
        assert VectorizerSettings(stop_words=["a", "b"]).stop_words == ("a", "b")

    def test_one_input_or_many(self):
        assert CorpusSettings(input="a").input == ("a",)
        assert CorpusSettings(input=["a", "b"]).input == ("a", "b")

    def test_plain_dicts_as_sections(self):
        assert Settings(model={"n_components": 5}).model.n_components == 5

    def test_none_is_written_as_a_word(self):
        assert VectorizerSettings(max_features="none").max_features is None
        assert ClusterSettings(scheduler="none").scheduler is None

    def test_a_count_and_a_share_stay_apart(self):
        counted, shared = VectorizerSettings(min_df=1), VectorizerSettings(min_df=1.0, max_df=1.0)
        assert type(counted.min_df) is int
        assert type(shared.min_df) is float

    def test_sizes_in_words(self):
        assert CorpusSettings(partition_bytes="64MiB").partition_bytes == 64 * 2**20
        assert ClusterSettings(memory_limit=4_000_000).memory_limit == "4000000"

    def test_json_round_trip(self):
        settings = Settings(
            corpus={"input": ["a", "b"]},
            vectorizer={"stop_words": ("x",), "max_features": None, "min_df": 0.5},
        )
        assert Settings.model_validate(settings.model_dump(mode="json")) == settings

    def test_frozen(self):
        with pytest.raises(ValidationError, match="frozen"):
            Settings().model.n_components = 3  # type: ignore[misc]


REFUSED = {
    "model.n_components": [0, -1, 2.5, True, "ten", "none", [1]],
    "model.max_iter": [0, 1.0],
    "model.sweeps": [0, 10**24, "few"],
    "model.tol": [-1e-9, "nan", float("nan"), float("inf"), True],
    "model.l1_ratio": [1.5, -0.1],
    "model.alpha_H": [-1, "some"],
    "model.beta_loss": ["kullback_leibler", 2],
    "model.random_state": [-1, 2**32, "none"],
    "vectorizer.ngram_range": [[2, 1], [0, 1], [1], [1, 2, 3], [1, 10**8], 1, "1-2"],
    "vectorizer.min_df": [0, -1, 1.5, True, "few"],
    "vectorizer.max_df": [0, -0.1, 2.0, False],
    "vectorizer.token_pattern": ["(", "(a)(b)", ""],
    "vectorizer.stop_words": [1, [1], ""],
    "vectorizer.lowercase": [1, "yes"],
    "vectorizer.n_features": [0, 2**31],
    "corpus.text_column": ["", None, 3, [], ["a", "a"], ["a", ""]],
    "corpus.keep": [["a", "a"], [""], 3],
    "corpus.input": [[""], 3],
    "output.output": ["", 1],
    "cluster.memory_limit": ["lots", "0", "4 GiBi", "-1GB", "1.5"],
    "cluster.workers": [0],
    "run.resume": [True],
}


class TestRefused:
    @pytest.mark.parametrize(("key", "value"), [(key, value) for key in REFUSED for value in REFUSED[key]])
    def test_wrong_value_is_named_with_its_key_and_source(self, key, value):
        message = refusal(overrides={key: value})
        assert message.startswith(f"overrides: {key} = ")
        assert "\n" not in message
        assert "pydantic" not in message

    def test_says_what_is_allowed(self):
        assert '"auto" or "never" is expected' in refusal(overrides={"run.resume": True})
        assert "a whole number of at least 1 is expected" in refusal(overrides={"model.max_iter": 0})
        assert "a number from 0.0 to 1.0 is expected" in refusal(overrides={"model.l1_ratio": 2})

    def test_nearest_choice(self):
        message = refusal(overrides={"model.beta_loss": "kulback-leibler"})
        assert 'did you mean "kullback-leibler"?' in message

    def test_zero_documents_hints_at_the_share(self):
        assert "0.0" in refusal(overrides={"vectorizer.min_df": 0})

    def test_cd_needs_frobenius(self):
        message = refusal(overrides={"model.solver": "cd", "model.beta_loss": "kullback-leibler"})
        assert 'model.solver = "cd" (overrides)' in message
        assert "mu" in message

    @pytest.mark.parametrize(("low", "high"), [(5, 4), (0.5, 0.4)])
    def test_min_df_above_max_df_of_the_same_kind(self, low, high):
        message = refusal(overrides={"vectorizer.min_df": low, "vectorizer.max_df": high})
        assert f"vectorizer.min_df = {low}" in message
        assert f"vectorizer.max_df = {high}" in message

    def test_a_share_and_a_count_are_not_compared(self):
        assert VectorizerSettings(min_df=100, max_df=0.5).min_df == 100

    def test_a_conflict_with_a_default_says_so(self):
        message = refusal(overrides={"vectorizer.min_df": 0.9})
        assert "vectorizer.max_df = 0.5 (default)" in message

    def test_a_running_cluster_has_its_shape(self):
        message = refusal(overrides={"cluster.scheduler": "tcp://a:1", "cluster.memory_limit": "1GiB"})
        assert 'cluster.memory_limit = "1GiB"' in message
        assert ClusterSettings(scheduler="tcp://a:1", workers=4).workers == 4  # how many to wait for

    def test_more_topics_than_terms(self):
        message = refusal(overrides={"model.n_components": 20, "vectorizer.max_features": 10})
        assert "model.n_components = 20" in message
        assert "vectorizer.max_features = 10" in message

    def test_credentials_are_not_repeated(self):
        message = refusal(overrides={"cluster.workers": "s3://key:secret@bucket/x"})
        assert "secret" not in message

    def test_everything_at_once_each_with_its_source(self, tmp_path):
        job = write_job(tmp_path, "[model]\nsolver = 'cdd'\nn_componets = 3\n[modle]\ntol = 1\n")
        environ = {"NMF_DASK_MODEL__TOL": "-1", "NMF_DASK_RUN__RESUMEE": "never"}
        message = refusal(job_file=job, environ=environ, overrides={"vectorizer.min_df": 0})
        lines = message.split("\n")
        assert lines[0] == "6 settings are wrong"
        for source, key in [
            (job, "model.solver"),
            (job, "model.n_componets; did you mean model.n_components?"),
            (job, "modle.tol; did you mean model.tol?"),
            ("NMF_DASK_MODEL__TOL", "model.tol = -1"),
            ("NMF_DASK_RUN__RESUMEE", "run.resumee; did you mean run.resume?"),
            ("overrides", "vectorizer.min_df = 0"),
        ]:
            assert [line for line in lines if line.startswith(f"  {source}: ") and key in line], (source, key)


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("model.n_component", "model.n_components"),
            ("model.alpha_w", "model.alpha_W"),
            ("model.min_df", "vectorizer.min_df"),
            ("vectorizer.stopwords", "vectorizer.stop_words"),
            ("vectorizr.stop_words", "vectorizer.stop_words"),
            ("cluster.n_workers", "cluster.workers"),
            ("Model.N_Components", "model.n_components"),
        ],
    )
    def test_nearest(self, key, meant):
        assert refusal(overrides={key: 1}).endswith(f"there is no setting {key}; did you mean {meant}?")

    def test_nothing_near(self):
        assert "[output] has output, n_top_terms" in refusal(overrides={"output.zzz": 1})
        assert "the sections are corpus, vectorizer" in refusal(overrides={"zzz.qqq": 1})

    def test_key_outside_of_its_section(self, tmp_path):
        message = refusal(job_file=write_job(tmp_path, "n_components = 3"))
        assert "it belongs to section [model]" in message

    def test_section_with_a_value(self, tmp_path):
        assert "write [model]" in refusal(job_file=write_job(tmp_path, "model = 3"))

    def test_table_in_a_section(self, tmp_path):
        assert "model.deep" in refusal(job_file=write_job(tmp_path, "[model.deep]\nx = 3"))


REQUIRED = {"corpus.input": "give --input", "output.output": "give --output"}


class TestRequired:
    @pytest.mark.parametrize("empty", [(), [], "none"])
    def test_missing_with_its_remedy_and_all_other_errors(self, empty):
        values = [Given("corpus.input", empty, "here"), Given("model.tol", -1, "there")]
        with pytest.raises(ConfigurationError) as caught:
            resolve(values, REQUIRED)
        message = str(caught.value)
        assert "corpus.input is missing: give --input" in message
        assert "output.output is missing: give --output" in message
        assert "there: model.tol = -1" in message

    def test_there(self):
        values = [Given("corpus.input", "a", "here"), Given("output.output", "b", "here")]
        assert resolve(values, REQUIRED).settings.corpus.input == ("a",)


class TestRedact:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("s3://AKID:s3cr/et+x@bucket/p", "s3://***@bucket/p"),
            (
                "s3://b/p?access_key=A&secret_key=S&region=eu",
                "s3://b/p?access_key=***&secret_key=***&region=eu",
            ),
            ("https://me:pw@host:8080/p", "https://me:***@host:8080/p"),
            (
                "abfs://box:key@account.dfs.core.windows.net/p",
                "abfs://box:***@account.dfs.core.windows.net/p",
            ),
            (
                "abfs://box@acc.dfs.core.windows.net/p?sig=a%3D&se=1",
                "abfs://box@acc.dfs.core.windows.net/p?sig=***&se=1",
            ),
            ("hdfs://me@node:9000/p", "hdfs://me@node:9000/p"),
            ("tcp://10.0.0.1:8786 mail a@b.c", "tcp://10.0.0.1:8786 mail a@b.c"),
            ("cannot open 's3://a:b@c/d': no", "cannot open 's3://***@c/d': no"),
            ("/data/a:b@c", "/data/a:b@c"),
        ],
    )
    def test_redact(self, text, shown):
        assert redact(text) == shown
        assert redact(shown) == shown


class TestBytes:
    @pytest.mark.parametrize("text", ["4GiB", "500MB", "1 kB", "1KiB", "2 TiB", "1.5 GiB", "3G", "7", "8 B"])
    def test_same_as_dask(self, text):
        from dask.utils import parse_bytes as expected

        assert parse_bytes(text) == expected(text)

    @pytest.mark.parametrize("text", ["", "GiB", "4 Gibi", "-1", "1.5", "1e3", "4GiB5", "inf"])
    def test_refused(self, text):
        with pytest.raises(ValueError, match="is no size"):
            parse_bytes(text)


def test_every_key_can_be_described():
    for key, field in KEYS.items():
        assert describe(field), key
        assert field.description, key


def test_no_key_is_named_twice():
    """An override on the command line and a hint both rely on a key's name standing for one key."""
    names = [key.partition(".")[2] for key in KEYS]
    assert len(names) == len(set(names))


def test_output_settings_need_no_output():
    assert OutputSettings().output is None
