"""What a running job shows: live on a terminal, few lines elsewhere, JSON for machines."""

import io
import json
import logging
import os
import pty
import re
import select
import struct
import sys
import termios
import time
import warnings
from fcntl import ioctl
from threading import Thread
from typing import TextIO

import pytest

from nmf_dask.cli.display import INTERVAL, JsonDisplay, LineDisplay, display
from nmf_dask.cli.live import LiveDisplay
from nmf_dask.cli.meter import Meter, duration
from nmf_dask.observer import Observer, Pass


def fail(log_format: str, out: TextIO) -> None:
    """A job that fails in its first stage."""
    with display(log_format, 0, out) as observer:
        observer.stage("count", 4)
        raise KeyError


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run_job(observer: Observer, clock: Clock, n_partitions: int = 1000, n_passes: int = 500) -> None:
    """A job of 1000 partitions in 125 s and 500 passes in 250 s."""
    observer.connected(2, 4, "http://127.0.0.1:8787/status")
    observer.stage("count", n_partitions)
    for done in range(1, n_partitions + 1):
        clock.now += 0.125
        observer.advance(done, 2_000_000)
    observer.stage("fit", n_passes)
    for iteration in range(1, n_passes + 1):
        clock.now += 0.5
        observer.passed(Pass(iteration, 100.0 / iteration, 0.5, 1))


def shown(log_format: str, verbosity: int = 0, job=run_job) -> list[str]:
    """The lines that a job leaves on a stream that is no terminal."""
    out, clock = io.StringIO(), Clock()
    with display(log_format, verbosity, out, clock) as observer:
        job(observer, clock)
    return out.getvalue().splitlines()


class TestLines:
    def test_few_with_a_time_each(self):
        lines = shown("text")
        assert 20 <= len(lines) <= 375 / INTERVAL + 6
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in lines)
        assert not any("\x1b" in line for line in lines)

    def test_what_they_say(self):
        lines = [line.partition("Z ")[2] for line in shown("text")]
        assert lines[0] == "2 workers, 4 threads; dashboard http://127.0.0.1:8787/status"
        assert lines[1] == "count: begins, 1000 partitions"
        assert "fit: begins, at most 500 passes" in lines
        assert lines[2] == "count: 80/1000 partitions, 16.0 MB/s, 1:55 left"
        assert "count: done in 2:05, 1000 partitions, 16.0 MB/s" in lines
        assert "fit: 20/500 passes, loss 5 (-5.000 %), 2.0 passes/s, at most 4:00 left" in lines
        assert lines[-1] == "fit: done in 4:10, 500/500 passes, loss 0.2, 2.0 passes/s"

    def test_quiet_says_only_warnings(self):
        def job(observer: Observer, clock: Clock) -> None:
            run_job(observer, clock)
            observer.inform("a fact")
            observer.warn("a warning")

        (line,) = shown("text", -1, job)
        assert line.endswith("Z warning: a warning")

    def test_verbose_says_every_pass(self):
        assert sum("loss" in line for line in shown("text", 1)) >= 500

    def test_a_failed_stage_is_not_called_done(self):
        out = io.StringIO()
        with pytest.raises(KeyError):
            fail("text", out)
        assert "done" not in out.getvalue()

    def test_credentials_are_left_out(self):
        for log_format in ("text", "json"):
            lines = shown(
                log_format,
                0,
                lambda observer, clock: observer.inform("reads s3://k:hush@b/c", uri="s3://k:hush@b"),
            )
            assert "s3://***@b/c" in lines[0]
            assert "hush" not in lines[0]

    def test_a_closed_log_does_not_end_the_job(self):
        read, written = os.pipe()
        os.close(read)
        with os.fdopen(written, "w", buffering=1) as out:
            LineDisplay(out).warn("unheard")
            with pytest.raises(BrokenPipeError):
                out.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), written)

    def test_a_log_whose_disk_is_full_does_not_end_the_job(self):
        with open("/dev/full", "w", buffering=1) as out:
            LineDisplay(out).warn("unheard")
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


class TestJson:
    def test_every_line_is_an_object_with_the_numbers(self):
        events = [json.loads(line) for line in shown("json")]
        kinds = [event["event"] for event in events]
        assert kinds.count("pass") == 500
        assert kinds.count("progress") <= 12
        assert events[0]["dashboard"] == "http://127.0.0.1:8787/status"
        done = next(event for event in events if event["event"] == "stage_done")
        assert (done["stage"], done["partition"], done["total"], done["bytes"]) == (
            "count",
            1000,
            1000,
            2 * 10**9,
        )
        assert done["seconds"] == 125
        last = [event for event in events if event["event"] == "pass"][-1]
        assert (last["pass"], last["loss"], last["rounds"]) == (500, 0.2, 1)

    def test_quiet(self):
        assert shown("json", -1) == []


class TestLogsOfLibraries:
    @pytest.fixture
    def dask_like(self):
        """A logger that writes to stderr on its own, as distributed's do."""
        logger = logging.getLogger("distributed.made_for_this_test")
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.propagate = False
        logger.setLevel(logging.INFO)
        yield logger
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True

    def test_go_through_the_display(self, dask_like, capsys):
        def job(observer: Observer, clock: Clock) -> None:
            observer.connected(1, 1, None)
            dask_like.warning("worker %s is gone", "w1")
            dask_like.info("chatter")

        lines = shown("json", 0, job)
        dask_like.error("closing, too late")
        assert json.loads(lines[1])["message"] == "distributed.made_for_this_test: worker w1 is gone"
        assert len(lines) == 2
        assert capsys.readouterr().err == ""

    def test_are_one_line_each(self, dask_like):
        def job(observer: Observer, clock: Clock) -> None:
            observer.connected(1, 1, None)
            dask_like.warning("scratch.py:258: UserWarning: slow\n  next(self.gen)\n")
            dask_like.error("")  # as Dask does of an exception without a message

        *_, line = shown("text", 0, job)
        assert line.endswith(
            "warning: distributed.made_for_this_test: scratch.py:258: UserWarning: slow next(self.gen)"
        )

    def test_python_warnings_too_and_only_meanwhile(self):
        def job(observer: Observer, clock: Clock) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                logging.captureWarnings(True)
                warnings.warn("old", stacklevel=1)

        before = list(logging.getLogger().handlers)
        (line,) = shown("json", 0, job)
        assert "UserWarning: old" in json.loads(line)["message"]
        assert logging.getLogger().handlers == before


class Terminal:
    """A pseudo-terminal; `text` is what was written to it."""

    def __enter__(self) -> "Terminal":
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.out = os.fdopen(slave, "w", encoding="utf-8")
        self._chunks: list[bytes] = []
        self._stopped = False
        self._reader = Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        while not self._stopped or select.select([self._master], [], [], 0)[0]:
            if select.select([self._master], [], [], 0.05)[0]:
                self._chunks.append(os.read(self._master, 65536))

    def __exit__(self, *_: object) -> None:
        self.out.flush()
        self._stopped = True
        self._reader.join()
        self.out.close()
        os.close(self._master)

    @property
    def text(self) -> str:
        return b"".join(self._chunks).decode()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


class TestLive:
    def test_on_a_terminal(self):
        with Terminal() as terminal, display("text", 0, terminal.out) as observer:
            assert isinstance(observer, LiveDisplay)
            observer.connected(2, 4, "http://127.0.0.1:8787/status")
            observer.stage("count", 64)
            observer.advance(12, 3_000_000)
            observer.warn("3 rows are null")
            time.sleep(0.4)
            observer.stage("fit", 200)
            observer.passed(Pass(1, 9.0, 0.1, 20))
            observer.passed(Pass(2, 8.5, 0.1, 20))
            time.sleep(0.4)
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
        assert "warning: 3 rows are null" in plain
        assert "12/64 partitions" in plain
        assert re.search(r"\d MB/s", plain)
        assert re.search(r"\d s left", plain)
        assert "count: done in" in plain
        assert re.search(r"2/200 passes  at most \d+ s left", plain)
        assert "loss 8.5 (-5.556 %)" in plain
        assert "2 workers, 4 threads; dashboard http://127.0.0.1:8787/status" in plain

    def test_cursor_comes_back_after_an_error(self):
        with Terminal() as terminal, pytest.raises(KeyError):
            fail("text", terminal.out)
        assert terminal.text.count("\x1b[?25h") >= terminal.text.count("\x1b[?25l") == 1

    def test_stdout_stays_the_results(self):
        with Terminal() as terminal, display("text", 0, terminal.out):
            assert sys.stdout is not terminal.out
            assert type(sys.stdout).__module__ != "rich.file_proxy"

    @pytest.mark.parametrize(
        ("log_format", "verbosity", "term", "kind"),
        [
            ("json", 0, "xterm", JsonDisplay),
            ("text", -1, "xterm", LineDisplay),
            ("text", 0, "dumb", LineDisplay),
            ("text", 0, "xterm", LiveDisplay),
        ],
    )
    def test_choice(self, monkeypatch, log_format, verbosity, term, kind):
        monkeypatch.setenv("TERM", term)
        with Terminal() as terminal, display(log_format, verbosity, terminal.out) as observer:
            assert type(observer) is kind


class TestMeter:
    def test_a_resumed_fit_counts_its_own_passes(self):
        clock = Clock()
        meter = Meter(clock)
        meter.begin("fit", 200)
        for iteration in (101, 102):
            clock.now += 2
            meter.passed(Pass(iteration, 1.0, 2.0, 1))
        assert meter.rate() == "2.0 s a pass"
        assert meter.seconds_left() == pytest.approx(98 * 2)

    def test_nothing_known(self):
        meter = Meter(Clock())
        meter.begin("plan")
        assert (meter.progress(), meter.seconds_left()) == ("", None)

    def test_one(self):
        meter = Meter(Clock())
        meter.begin("fit", 1)
        meter.advance(1)
        assert meter.counted() == "1/1 pass"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1:00"), (3723, "1:02:03")],
    )
    def test_duration(self, seconds, text):
        assert duration(seconds) == text


def test_displays_implement_every_event():
    """An event added to Observer and forgotten in the display would be silently invisible."""
    events = [
        name for name, member in vars(Observer).items() if callable(member) and not name.startswith("_")
    ]
    for name in events:
        assert name in vars(LineDisplay), name
