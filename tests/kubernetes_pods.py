"""Containers of a manifest as processes of this machine, with the environment that Kubernetes would give them.

What a cluster does and a process cannot: a pod has an address of its own, so that here each has its own ports on the
loopback; volumes are folders, and the paths where they are mounted are replaced in the command.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.servers import free_port
from tests.small_corpora import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
SCHEDULER_PORT, HEALTH_PORT = "8786", "8787"
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest, in order."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text("utf-8")))


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [one for one in objects if one["kind"] == kind]
    return found


def quantity(text: str) -> float:
    """Such as 4Gi or 500m, in bytes or cores."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert match is not None
    return float(match[1]) * _UNITS[match[2]]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) as Kubernetes expands it: $$ is $, and what is not known stays (third_party/forked/golang/expansion)."""
    found, at = [], 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            found.append(text[at])
            at += 1
        elif text[at + 1] == "$":
            found.append("$")
            at += 2
        elif text[at + 1] == "(" and (end := text.find(")", at)) > 0:
            name = text[at + 2 : end]
            found.append(variables.get(name, f"$({name})"))
            at = end + 1
        else:
            found.append(text[at : at + 2])
            at += 2
    return "".join(found)


def container_environment(
    container: Mapping[str, Any], fields: Mapping[str, str], secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The variables that a container's `envFrom` and `env` make, in their order."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        secret = source["secretRef"]
        assert secret.get("optional") or secret["name"] in secrets, f"no Secret {secret['name']}"
        found.update(secrets.get(secret["name"], {}))
    limits = container["resources"]["limits"]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "resourceFieldRef" in source:
            name = source["resourceFieldRef"]["resource"].removeprefix("limits.")
            found[variable["name"]] = str(math.ceil(quantity(limits[name])))
        else:
            found[variable["name"]] = expanded(variable["value"], found)
    return found


def commands(folder: Path, nmf_dask: str = "nmf_dask") -> Path:
    """A folder for PATH, with this checkout's commands, and a `sleep` that does not take long."""
    folder.mkdir(exist_ok=True)
    for name, command in {
        "nmf-dask": f'{sys.executable} -m {nmf_dask} "$@"',
        "dask": f'{sys.executable} -m dask "$@"',
        "sleep": "/bin/sleep 0.3",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (folder / name).chmod(0o755)
    return folder


class Pod:
    """One container that runs as the manifest says; `command` is what the image's entry point would end in."""

    def __init__(
        self,
        container: Mapping[str, Any],
        folder: Path,
        path: Path,
        *,
        fields: Mapping[str, str] = {},
        given: Mapping[str, str] = {},
        secrets: Mapping[str, Mapping[str, str]] = {},
        replaced: Mapping[str, str] = {},
        **more: str,
    ) -> None:
        self.log = folder / f"pod-{time.monotonic_ns()}.log"
        self.health = str(free_port())
        assert "command" not in container, "the entry point of the image would not run"
        replaced = {"/etc/nmf-dask": str(folder), HEALTH_PORT: self.health, **replaced}
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert sorted(mounted) == ["/etc/nmf-dask", "/tmp"], mounted

        def here(text: str) -> str:
            for theirs, ours in replaced.items():
                text = text.replace(theirs, ours)
            return text

        known = {"POD_IP": "127.0.0.1", "PATH": f"{path}:{os.environ['PATH']}"}
        made = container_environment(container, {"status.podIP": "127.0.0.1", **fields}, secrets)
        made |= {name: here(value) for name, value in {**given, **made}.items()}
        arguments = [here(expanded(argument, made)) for argument in container["args"]]
        folders = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                arguments, env={**known, **folders, **made, **more}, cwd=folder, stdout=subprocess.DEVNULL, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def child(self, word: str) -> int:
        """The process of this container whose command line holds `word`."""
        [found] = [pid for pid in members(self.process.pid) if word in command_line(pid)]
        return found

    def ended(self, seconds: float = 60) -> int:
        """The exit code of the container; with its first process all others go."""
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.kill()

    def terminated(self, grace: float) -> int:
        """The exit code after SIGTERM to the first process alone, as the kubelet sends it."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended(grace)

    def kill(self) -> None:
        for pid in {self.process.pid, *members(self.process.pid)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something that is to happen."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found
