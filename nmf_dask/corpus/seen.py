"""Files of an input as a listing shows them: path, size and time of the last change, without a look into any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pyarrow import fs

from nmf_dask.corpus.locations import Found, Location, Version, explain, version_of
from nmf_dask.errors import InputDataError

ASKED_AT_ONCE = 1000
REQUESTS = 16


class Seen(NamedTuple):
    """A file, and the version of it that is there."""

    found: Found
    version: Version

    @property
    def uri(self) -> str:
        """The path or URI that names it."""
        return str(self.found.location)


def look_at(files: Sequence[Found]) -> list[Seen]:
    """Size and time of files, in their order; InputDataError where one is gone.

    What a store's listing said of a file is not asked for again.
    """
    seen = {one.location: Seen(one, one.version) for one in files if one.version is not None}
    by_system: dict[str, list[Found]] = defaultdict(list)
    for file in (one for one in files if one.version is None):
        by_system[file.location.file_system].append(file)
    stretches = [
        some[low : low + ASKED_AT_ONCE]
        for some in by_system.values()
        for low in range(0, len(some), ASKED_AT_ONCE)
    ]
    with ThreadPoolExecutor(min(REQUESTS, max(1, len(stretches)))) as pool:
        seen |= {one.found.location: one for some in pool.map(_look, stretches) for one in some}
    return [seen[file.location] for file in files]


def _look(files: Sequence[Found]) -> list[Seen]:
    first: Location = files[0].location
    try:
        infos = first.handler.get_file_info([file.location.path for file in files])
    except OSError as error:
        raise explain(error, first, "look at") from None
    for file, info in zip(files, infos, strict=True):
        if info.type == fs.FileType.NotFound:
            raise InputDataError(
                f"{file.location} is gone, which was there a moment ago: does something write to the input?"
            )
    return [Seen(file, version_of(info)) for file, info in zip(files, infos, strict=True)]
