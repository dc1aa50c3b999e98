"""Job files: read, rendered, and their values on the command line and in the environment."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies

from nmf_dask.config import Settings
from nmf_dask.jobfile import (
    KEYS,
    SECTIONS,
    Given,
    load_settings,
    parse_value,
    read_job_file,
    render,
    render_example,
    resolve,
    toml_value,
)
from tests.test_config import refusal, write_job


class TestJobFile:
    def test_missing(self, tmp_path):
        assert "does not exist" in refusal(job_file=str(tmp_path / "no.toml"))

    def test_folder(self, tmp_path):
        assert "cannot be read" in refusal(job_file=str(tmp_path))

    def test_a_corpus_in_its_place(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1\xff\xfe\x00")
        assert "--input" in refusal(job_file=str(tmp_path / "a.parquet"))

    def test_syntax_error_has_its_line(self, tmp_path):
        message = refusal(job_file=write_job(tmp_path, "[model]\nn_components = 3\nsolver = mu\n"))
        assert "job.toml, line 3, column" in message
        assert "solver = mu" in message

    @pytest.mark.parametrize("text", ["[model", "[model]\ntol = ", "[model]\ntol = 1\ntol = 2", "x = '''a"])
    def test_any_syntax_error_names_the_file(self, tmp_path, text):
        message = refusal(job_file=write_job(tmp_path, text))
        assert "job.toml" in message
        assert "not valid TOML" in message

    def test_syntax_error_keeps_credentials(self, tmp_path):
        assert "hush" not in refusal(job_file=write_job(tmp_path, "[corpus]\ninput = s3://me:hush@bucket/x"))

    def test_windows_line_ends_and_byte_order_mark(self, tmp_path):
        (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf[model]\r\nn_components = 3\r\n")
        assert load_settings(tmp_path / "job.toml", {}).model.n_components == 3


class TestParsing:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("vectorizer.min_df", "10", 10),
            ("vectorizer.min_df", "0.01", 0.01),
            ("vectorizer.min_df", "1.0", 1.0),
            ("vectorizer.max_features", "none", "none"),
            ("vectorizer.stop_words", "english", "english"),
            ("vectorizer.stop_words", "a, b,c", ["a", "b", "c"]),
            ("vectorizer.stop_words", "1,2", ["1", "2"]),
            ("vectorizer.stop_words", "only,", ["only"]),
            ("vectorizer.stop_words", "lists/stop.txt", "lists/stop.txt"),
            ("vectorizer.stop_words", '["a", "b"]', ["a", "b"]),
            ("vectorizer.ngram_range", "1,2", [1, 2]),
            ("vectorizer.ngram_range", "[1, 2]", [1, 2]),
            ("vectorizer.token_pattern", r"\w{2,}", r"\w{2,}"),
            ("vectorizer.lowercase", "false", False),
            ("model.tol", "1e-3", 1e-3),
            ("model.alpha_H", "same", "same"),
            ("model.alpha_H", "0.5", 0.5),
            ("corpus.text_column", "42", "42"),
            ("corpus.text_column", "true", "true"),
            ("corpus.text_column", '"42"', "42"),
            ("output.output", "2024-01-01", "2024-01-01"),
            ("output.output", "a,b", "a,b"),
            ("corpus.input", "a,b", "a,b"),
            ("corpus.input", '["a", "b"]', ["a", "b"]),
            ("corpus.input", "[ab].parquet", "[ab].parquet"),
            ("cluster.memory_limit", "4GiB", "4GiB"),
            ("model.n_components", "5\nmax_iter = 1", "5\nmax_iter = 1"),
        ],
    )
    def test_text(self, key, text, value):
        parsed = parse_value(key, text)
        assert parsed == value
        assert type(parsed) is type(value)

    def test_nonsense_is_left_for_validation(self):
        assert "model.n_components = 2.5" in refusal(environ={"NMF_DASK_MODEL__N_COMPONENTS": "2.5"})
        assert "the shortest n-gram comes first" in refusal(
            environ={"NMF_DASK_VECTORIZER__NGRAM_RANGE": "2,1"}
        )

    def test_empty_variable_is_no_value(self):
        assert "output.output" in refusal(environ={"NMF_DASK_OUTPUT__OUTPUT": ""})


class TestRendering:
    def settings(self) -> Settings:
        return Settings(
            corpus={"input": ["a b.parquet", 'quo"te', "ümlaut", "new\nline", "tab\tback\\slash'"]},
            vectorizer={
                "max_features": None,
                "norm": None,
                "ngram_range": (1, 2),
                "min_df": 1,
                "max_df": 1.0,
            },
            model={"tol": 1e-7, "alpha_W": 1e22, "random_state": 4, "normalize": True},
            cluster={"memory_limit": "4GiB"},
        )

    def test_round_trip(self, tmp_path):
        text = render(
            resolve([Given(f"{s}.{k}", getattr(getattr(self.settings(), s), k), "x") for s, k in pairs()])
        )
        assert load_settings(write_job(tmp_path, text), {}) == self.settings()

    def test_defaults_round_trip(self, tmp_path):
        assert load_settings(write_job(tmp_path, render(resolve([]))), {}) == Settings()

    def test_every_key_says_where_it_came_from(self):
        text = render(resolve([Given("model.tol", 0.5, "--tol"), Given("corpus.input", "a", "job.toml")]))
        assert "tol = 0.5  # --tol" in text
        assert 'input = ["a"]  # job.toml' in text
        assert text.count("# default") == len(KEYS) - 2

    def test_credentials_are_left_out(self):
        text = render(resolve([Given("corpus.input", "s3://key:hush@bucket/a?secret_key=hush", "x")]))
        assert "hush" not in text
        assert "bucket/a" in text

    @given(strategies.text(strategies.characters(codec="utf-8")))
    def test_any_string_is_valid_toml(self, text):
        assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}

    @given(
        strategies.floats(allow_nan=False) | strategies.integers(-(2**63), 2**63 - 1) | strategies.booleans()
    )
    def test_any_number_is_valid_toml(self, number):
        read = tomllib.loads(f"x = {toml_value(number)}")["x"]
        assert read == number
        assert type(read) is type(number)


def pairs() -> list[tuple[str, str]]:
    return [(name, key) for name, section in SECTIONS.items() for key in section.model_fields]


class TestExample:
    PATH = Path(__file__).parents[1] / "jobs" / "example.toml"

    def test_is_rendered_from_the_settings(self):
        assert self.PATH.read_text(encoding="utf-8") == render_example()

    def test_gives_the_defaults(self):
        assert load_settings(self.PATH, {}) == Settings()

    def test_has_every_key_once(self):
        for key in KEYS:
            name = key.partition(".")[2]
            assert len(re.findall(rf"^(?:# )?{name} = ", render_example(), re.MULTILINE)) == 1, key

    def test_commented_out_keys_are_valid(self, tmp_path):
        text = re.sub(r"^# (\w+ = )", r"\1", render_example(), flags=re.MULTILINE)
        text = re.sub(r"^(threads_per_worker|memory_limit) = .*\n", "", text, flags=re.MULTILINE)
        of_counts = re.sub(r"^(strip_accents|stop_words) = .*\n", "", text, flags=re.MULTILINE)
        assert load_settings(write_job(tmp_path, of_counts), {}).corpus.feature_column is not None
        text = re.sub(r"^(feature_column|value_column|feature_names) = .*\n", "", text, flags=re.MULTILINE)
        assert load_settings(write_job(tmp_path, text), {}).cluster.scheduler is not None
        assert len(read_job_file(write_job(tmp_path, text))) == len(KEYS) - 5

    def test_differences_from_scikit_learn_are_told(self):
        """A default that is not scikit-learn's says what scikit-learn's is; the same one says nothing."""
        from sklearn.decomposition import NMF
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer

        theirs = {}
        for section, classes in {"vectorizer": (HashingVectorizer, TfidfVectorizer), "model": (NMF,)}.items():
            for cls in classes:
                for name, parameter in inspect.signature(cls).parameters.items():
                    theirs[f"{section}.{name}"] = parameter.default
        compared = 0
        for key, field in KEYS.items():
            told = re.search(r"scikit-learn: (.*)$", field.description or "")
            if key not in theirs:
                assert told is None, key
                continue
            compared += 1
            if theirs[key] == field.default and type(theirs[key]) is type(field.default):
                assert told is None, key
            else:
                assert told is not None, key
                assert told[1] == toml_value(theirs[key])
        assert compared >= 23
