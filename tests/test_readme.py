"""What the documentation says is run, or held against what it speaks of."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nmf_dask
from nmf_dask import demo, errors
from nmf_dask.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CHANGELOG.md", "jobs/README.md", "deploy/README.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(language: str, name: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), re.DOTALL | re.MULTILINE)


def test_python_examples_run(tmp_path: Path) -> None:
    """In their order, in one process that treats warnings as errors, beside a corpus as they expect it."""
    documents = list(itertools.islice(demo.installed_documents(), 3_000))
    demo.write_corpus(documents, tmp_path / "corpus")
    examples = blocks("python")
    assert len(examples) == 2
    script = tmp_path / "example.py"
    script.write_text("\n".join(examples), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3000 ")
    assert (tmp_path / "model" / "LATEST").is_file()


def test_the_two_commands_make_their_own_environment() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "venv" in line]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/nmf-dask demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest -n 3",
    ]


@pytest.mark.parametrize(("pattern", "line"), [("nmf-dask demo", 0), ("python -m pytest", 1)])
def test_ci_runs_the_commands_of_the_readme(pattern: str, line: int) -> None:
    """Runs the function of .ci/run that takes the commands from the README."""
    script = text_of(".ci/run")
    assert f"readme_command '{pattern}' " in script
    function = script[script.index("readme_command() {") : script.index("\n}\n") + 3]
    shell = f'work=/w\n{function}readme_command "{pattern}" venv'
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = [one for block in blocks("sh") for one in block.splitlines() if "venv" in one][line]
    assert done.stdout == wanted.replace(".venv", "/w/venv") + "\n"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", text_of(name)):
        assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), target


def started_by(script: str) -> str:
    """The command that a script of jobs/ hands its arguments to."""
    [command] = re.findall(r'nmf_dask\(\["(\w+)", ', text_of(f"jobs/{script}.py"))
    return str(command)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_flags_exist(name: str) -> None:
    import click

    from nmf_dask.cli import commands

    group = click.Context(commands)
    flags: dict[str, set[str]] = {}
    for command in COMMANDS:
        found = commands.get_command(group, command)
        assert found is not None
        options = found.get_params(click.Context(found))
        flags[command] = {flag for option in options for flag in option.opts} | {"--help"}
    for block in blocks("(?:sh)?", name):
        for line in block.splitlines():
            for command, rest in re.findall(
                r"(?:bin/nmf-dask|^nmf-dask|jobs/)(?: |)(\w+)(?:\.py)?(.*)", line
            ):
                command = started_by(command) if f"jobs/{command}.py" in line else command
                assert command in flags, line
                used = set(re.findall(r"(?<= )--?[a-z-]+", rest.split("#")[0]))
                assert used <= flags[command], line


def test_tests_that_are_named_exist() -> None:
    named = {path for name in DOCUMENTS for path in re.findall(r"tests/\w+\.py", text_of(name))}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_exit_codes_are_those_of_the_errors() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \| ", text_of("README.md"), re.MULTILINE)}
    raised = {one.exit_code for one in vars(errors).values() if isinstance(one, type)}
    assert codes == {0} | raised


def test_every_job_is_listed() -> None:
    files = {path.name for path in (ROOT / "jobs").iterdir() if path.suffix in {".py", ".toml"}}
    assert set(re.findall(r"^\| \[([\w.]+)\]", text_of("jobs/README.md"), re.MULTILINE)) == files


def test_one_version_with_a_section_in_the_changelog() -> None:
    assert f"## {nmf_dask.__version__}" in text_of("CHANGELOG.md")
    assert "version" not in tomllib.loads(text_of("pyproject.toml"))["project"]


def test_defaults_that_the_readme_names() -> None:
    vectorizer, model = nmf_dask.VectorizerSettings(), nmf_dask.ModelSettings()
    told = re.sub(r"\s+", " ", text_of("README.md"))
    assert f"`min_df` = {vectorizer.min_df}, `max_df` = {vectorizer.max_df}" in told
    assert f"`max_features` = {vectorizer.max_features:,}" in told
    assert f'`solver` = "{model.solver}" and `init` = "{model.init}"' in told
    assert f"`random_state` = {model.random_state}" in told
    assert f"`n_features` = 2^{vectorizer.n_features.bit_length() - 1}" in told
