"""A network that a test can cut: a namespace of its own, whose only way out is a pair of devices."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Network:
    """Its name, which is also that of the device within, and the addresses of both ends."""

    name: str
    inside: str
    outside: str

    @property
    def within(self) -> list[str]:
        """What stands before the command of a process that is to be in it."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """As if somebody pulled the cable."""
        _ip(f"link set {self.name}h down")


@contextmanager
def network() -> Iterator[Network]:
    """One for the length of a `with`; its addresses are of the block that is kept for tests, and of this process."""
    if shutil.which("ip") is None and "CI" not in os.environ:
        pytest.skip("no `ip` here: install iproute2")
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can make network namespaces")
    number = os.getpid() % 2**15
    place = f"198.{18 + number // 2**14}.{number // 64 % 256}"
    first = number % 64 * 4
    made = Network(f"nmf{os.getpid()}", f"{place}.{first + 2}", f"{place}.{first + 1}")
    try:
        for command in (
            f"netns add {made.name}",
            f"link add {made.name}h type veth peer name {made.name} netns {made.name}",
            f"address add {made.outside}/30 dev {made.name}h",
            f"link set {made.name}h up",
            f"-n {made.name} address add {made.inside}/30 dev {made.name}",
            f"-n {made.name} link set {made.name} up",
            f"-n {made.name} link set lo up",
        ):
            _ip(command)
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", made.name], check=False)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)
