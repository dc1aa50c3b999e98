"""A model of one pass on many workers: pure functions of assumptions that are all written down here.

Frobenius, whole passes. A worker adds up its own strips first; sums then go up a tree; one worker updates H; the others
fetch it from whoever has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nmf_dask.blocks import Sizes
from nmf_dask.schedule import strip_count


@dataclass(frozen=True)
class Machine:
    """What is assumed of a worker, its network and the scheduler; the first two are measured by scaling.py."""

    nonzero_seconds: float = 0.6e-9
    """Of one core, for one nonzero and one topic in one whole pass."""
    task_seconds: float = 0.5e-3
    """Of the scheduler, for one task; it has one core."""
    cores: int = 8
    bandwidth: float = 1.25e9
    """Bytes a second in and out of a worker, at once: 10 Gbit/s."""
    latency: float = 1e-3
    """Seconds of one transfer before its first byte: a message to the scheduler, one to the peer, serialization."""
    add_bandwidth: float = 4e9
    """Bytes of sums that one core adds a second."""
    flops: float = 40e9
    """Of one core in products of dense float32 matrices."""
    fan_in: int = 8
    tasks_a_strip: float = 3 + 1 / 7
    """visit, its weights, its sums; and a node of the tree for every seven."""
    h_sweeps: int = 2


@dataclass(frozen=True)
class Load:
    """A corpus and a model."""

    n_documents: int
    nonzeros_a_document: int
    n_components: int
    n_features: int

    @property
    def H_bytes(self) -> int:
        """H in float32; the sums that H is updated from are as large."""
        return 4 * self.n_components * self.n_features


@dataclass(frozen=True)
class PassTime:
    """Seconds of one whole pass, by what takes them."""

    compute: float
    scheduler: float
    reduce: float
    update: float
    broadcast: float

    @property
    def total(self) -> float:
        """The scheduler works while the workers do; the rest is one after the other."""
        return max(self.compute, self.scheduler) + self.reduce + self.update + self.broadcast

    shared: float
    """What the pass would take if all cores of all workers did nothing but compute."""

    @property
    def efficiency(self) -> float:
        """The share of the time in which all cores of all workers do what one alone would do too."""
        return self.shared / self.total


def core_seconds(load: Load, machine: Machine) -> float:
    """Of one core, for a whole pass over all documents."""
    nonzeros = load.n_documents * load.nonzeros_a_document
    return nonzeros * load.n_components * machine.nonzero_seconds


def strips_of(load: Load) -> int:
    """How many strips such a fit is cut into: from its sizes alone, however many workers there are."""
    nnz = load.n_documents * load.nonzeros_a_document
    return strip_count(Sizes(load.n_documents, load.n_features, nnz, load.n_components), "frobenius")


def pass_time(workers: int, load: Load, machine: Machine) -> PassTime:
    """One pass as it is built: a tree of sums, one update, H fetched whole."""
    work = core_seconds(load, machine)
    strips = strips_of(load)
    size, moved = load.H_bytes, load.H_bytes / machine.bandwidth
    # Each node of the tree has one part already and fetches the others over its one wire.
    others = min(machine.fan_in, workers) - 1
    levels = math.ceil(math.log(workers, machine.fan_in) - 1e-9) if workers > 1 else 0
    adding = others * size / machine.add_bandwidth
    flops = machine.h_sweeps * 2 * load.n_components**2 * load.n_features
    # Holders of H double with every step.
    steps = math.ceil(math.log2(workers))
    return PassTime(
        compute=work / min(workers * machine.cores, strips),
        scheduler=_tasks(strips, machine),
        reduce=levels * (others * moved + adding + machine.latency),
        update=flops / (machine.flops * machine.cores),
        broadcast=steps * (moved + machine.latency),
        shared=work / (workers * machine.cores),
    )


def split_pass_time(workers: int, load: Load, machine: Machine) -> PassTime:
    """What would come next: H's columns split over the workers, and one task a worker that uses all its cores.

    Each worker gets its columns of everybody's sums, updates them, and sends them to everybody: the bytes through one
    wire no longer grow with the workers. The k by k sums go up the tree.
    """
    work = core_seconds(load, machine)
    whole = pass_time(workers, load, machine)
    part = load.H_bytes * (workers - 1) / workers
    steps = math.ceil(math.log2(workers))
    exchange = part / machine.bandwidth + steps * machine.latency
    return PassTime(
        compute=work / (workers * machine.cores),
        scheduler=_tasks(workers, machine),
        reduce=exchange + part / machine.add_bandwidth,
        update=whole.update / workers,
        broadcast=exchange,
        shared=work / (workers * machine.cores),
    )


def _tasks(strips: int, machine: Machine) -> float:
    return strips * machine.tasks_a_strip * machine.task_seconds


def most_workers(load: Load, machine: Machine, split: bool = False, efficiency: float = 0.5) -> int:
    """The most workers (a power of two) that are still busy for a share of the time; 0 where one is not."""
    time_of = split_pass_time if split else pass_time
    busy = [2**e for e in range(14) if time_of(2**e, load, machine).efficiency >= efficiency]
    return max(busy, default=0)


def fastest(load: Load, machine: Machine, split: bool = False) -> int:
    """The number of workers (a power of two) with the shortest pass: beyond it more workers make it slower."""
    time_of = split_pass_time if split else pass_time
    return min((2**e for e in range(14)), key=lambda workers: time_of(workers, load, machine).total)
