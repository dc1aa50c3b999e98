"""What starting costs: `import nmf_dask`, --version and --help load nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nmf_dask
from nmf_dask.config import Settings
from nmf_dask.jobfile import load_settings
from tests.parquet_files import write


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


class TestLight:
    HEAVY = (
        "numpy",
        "numba",
        "dask",
        "distributed",
        "pyarrow",
        "pydantic",
        "rich",
        "scipy",
        "sklearn",
        "pandas",
    )

    @pytest.mark.parametrize(
        "code",
        [
            "import nmf_dask",
            "from nmf_dask.cli import main; assert main(['--version']) == 0",
            "from nmf_dask.cli import main; assert main(['--help']) == 0",
            "from nmf_dask.cli import main; assert main([]) == 0",
            "from nmf_dask.cli import main; assert main(['fti']) == 2",
        ],
    )
    def test_imports_nothing_heavy(self, code):
        check = f"import sys\n{code}\nheavy = {self.HEAVY} & sys.modules.keys()\nassert not heavy, heavy"
        done = run_python("-c", check.replace(str(self.HEAVY), str(set(self.HEAVY))))
        assert done.returncode == 0, done.stderr

    def test_help_of_a_command_needs_no_engine(self):
        code = "import sys; from nmf_dask.cli import main; main(['fit', '--help']); print(*sys.modules)"
        assert not {"numpy", "dask", "pyarrow"} & set(run_python("-c", code).stdout.split())

    def test_module_runs(self):
        done = run_python("-m", "nmf_dask", "--version")
        assert done.stdout == f"nmf-dask, version {nmf_dask.__version__}\n"

    def test_a_job_loads_neither_pandas_nor_what_draws_pages(self, tmp_path):
        """Both are installed with the tests: Arrow and Dask take them along, half a second of them."""
        write(tmp_path / "corpus.parquet", ["apples pears", "plums cherries"] * 20)
        arguments = [
            "fit",
            "-q",
            "--input",
            f"{tmp_path}/corpus.parquet",
            "--output",
            f"{tmp_path}/model",
            "-k",
            "2",
        ]
        code = (
            "import sys; from nmf_dask import cli; cli.leave = lambda code: sys.stderr.write(f'exit {code}')\n"
            f"sys.argv[1:] = {[*arguments, '--set', 'vectorizer.max_df=1.0']}; cli.run()\n"
            "assert 'numba' in sys.modules\n"
            "heavy = {'pandas', 'bokeh', 'distributed', 'sklearn', 'asyncio', 'scipy.linalg'}\n"
            "assert not heavy & sys.modules.keys()"
        )
        done = run_python("-c", code)
        assert (done.returncode, done.stderr) == (0, "exit 0")

    def test_what_draws_pages_finds_pandas(self):
        """bokeh, which makes Dask's report, looks whether it is installed."""
        pytest.importorskip("bokeh", reason="bokeh is not installed (extra dashboard)")
        code = (
            "import sys; from nmf_dask.cli import WithoutPandas; sys.meta_path.insert(0, WithoutPandas())\n"
            "from bokeh.models import DatetimeTickFormatter; DatetimeTickFormatter(context=DatetimeTickFormatter())"
        )
        done = run_python("-W", "ignore", "-c", code)
        assert done.returncode == 0, done.stderr


class TestEnd:
    """The end of a process that does not wait for Python to take itself apart."""

    def test_nothing_that_was_printed_or_registered_is_lost(self):
        code = (
            "import atexit; from nmf_dask.cli import leave; print('a long line', end='');"
            "atexit.register(print, ', and the last'); leave(65)"
        )
        done = run_python("-c", code)
        assert (done.returncode, done.stdout, done.stderr) == (65, "a long line, and the last\n", "")

    @pytest.mark.parametrize(("given", "code"), [("0", 1), ("65", 65)])
    def test_what_cannot_be_written_out_is_no_success(self, given, code):
        with open("/dev/full", "w") as full:
            call = f"from nmf_dask.cli import leave; print('lost'); leave({given})"
            buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
            done = subprocess.run([sys.executable, "-c", call], stdout=full, check=False, env=buffered)
        assert done.returncode == code

    @pytest.mark.parametrize("arguments", [["fit", "--no-such"], ["fit", "a.toml", "--log-format", "json"]])
    def test_an_error_that_cannot_be_told_keeps_its_exit_code(self, arguments):
        read, closed = os.pipe()
        os.close(read)
        with open("/dev/full", "w") as full, os.fdopen(closed, "w") as unread:
            for stderr in (full, unread):
                called = [sys.executable, "-m", "nmf_dask", *arguments]
                assert subprocess.run(called, stderr=stderr, check=False).returncode == 2


class TestCompletion:
    def test_completion_knows_the_choices(self):
        script = {
            "_NMF_DASK_COMPLETE": "bash_complete",
            "COMP_WORDS": "nmf-dask fit --solver ",
            "COMP_CWORD": "3",
        }
        done = run_python("-m", "nmf_dask", env={**os.environ, **script})
        assert done.stdout.split() == ["plain,auto", "plain,mu", "plain,cd"]


class TestPackage:
    def test_lazy_names(self):
        assert nmf_dask.Settings is Settings
        assert nmf_dask.load_settings is load_settings
        assert {"fit", "TopicModel", "beta_divergence"} <= set(dir(nmf_dask))
        with pytest.raises(AttributeError, match="nothing_of_that_name"):
            nmf_dask.nothing_of_that_name  # noqa: B018

    def test_type_checkers_see_every_lazy_name(self):
        source = Path(nmf_dask.__file__).read_text()
        for name, home in nmf_dask._HOMES.items():
            assert f"from {home} import {name} as {name}\n" in source


def test_kernels_beside_ours_still_have_their_blas():
    """What we keep numba from loading at the start, it loads for whoever needs it."""
    code = (
        "import sys, numpy, numba, nmf_dask.kernels.frobenius\n"
        "assert 'scipy.linalg' not in sys.modules\n"
        "product = numba.njit(lambda a, b: numpy.dot(a, b))(numpy.ones((2, 3)), numpy.ones((3, 2)))\n"
        "assert product.tolist() == [[3, 3], [3, 3]] and 'scipy.linalg' in sys.modules"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_large_arrays_go_back_to_the_system():
    """Ten of 20 MiB with a small one between each: of those glibc keeps all, where it is left to itself."""
    code = (
        "import numpy\n"
        "from nmf_dask.residence import return_large, rss\n"
        "return_large()\n"
        "array = numpy.ones(30 * 2**17); del array\n"  # what the allocator would learn from
        "arrays = [(numpy.ones(20 * 2**17), numpy.ones(2000)) for _ in range(10)]\n"
        "before, small = rss(), [two[1] for two in arrays]; del arrays\n"
        "print((before - rss()) // 2**20)"
    )
    assert int(run_python("-c", code).stdout) >= 190
