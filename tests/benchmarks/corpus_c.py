"""Make corpus C: a corpus repeated to a number of bytes, so that no document stands twice (but where it did before).

Each copy's ids carry its number, and a share of the words of a copy change places at random between its documents. The
first copy is the corpus itself. The same corpus and options give the same files.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

EXCHANGED = 0.15  # of the words: rows differ, and topics are still there
ALWAYS = 2  # of the first words of each text


def make(
    corpus: str,
    output: str,
    n_bytes: int,
    files: int,
    row_groups: int,
    text_column: str = "text",
    id_column: str = "doc_id",
    exchanged: float = EXCHANGED,
) -> dict[str, Any]:
    """Write corpus C as `files` files of about equal size, each of `row_groups` row groups.

    `n_bytes` is its bytes of text, to within a document. Raises ValueError where the folder holds files already.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{output} holds files already; name an empty folder, or one to be made")
    original = ds.dataset(corpus).to_table([id_column, text_column]).rename_columns(["doc_id", "text"])
    original = original.set_column(0, "doc_id", original["doc_id"].cast(pa.string()))
    sizes = pc.binary_length(original["text"]).to_numpy()
    copies, rest = divmod(n_bytes, int(sizes.sum()))
    n_rows = copies * len(sizes) + int((sizes.cumsum() <= rest).sum())
    tables = (_copy(original, number, exchanged) for number in range(copies + 1))
    cuts = [n_rows * number // files for number in range(files + 1)]
    for number, part in enumerate(_cut(tables, cuts)):
        _write(part, folder / f"part-{number:05d}.parquet", row_groups)
    return {"n_rows": n_rows, "copies": n_rows / max(len(sizes), 1), "files": files}


def _copy(original: pa.Table, number: int, exchanged: float) -> pa.Table:
    """Copy number `number`: ids with a suffix, and words that changed places."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if number == 0:
        return original
    ids = pc.binary_join_element_wise(original["doc_id"], str(number), "#")
    return pa.table({"doc_id": ids, "text": _exchange(original["text"], number, exchanged)})


def _exchange(texts: pa.ChunkedArray, seed: int, share: float) -> pa.Array:
    """Texts of which a share of the words, drawn at random, were permuted at random among all documents."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    split = pc.utf8_split_whitespace(pa.concat_arrays(texts.chunks))
    words = split.flatten()
    offsets = split.offsets.to_numpy() - split.offsets[0].as_py()
    rng = np.random.default_rng(seed)
    drawn = rng.random(len(words)) < share
    for place in range(ALWAYS):  # a short text might else stay as it was
        at = offsets[:-1] + place
        drawn[at[at < offsets[1:]]] = True
    chosen = np.flatnonzero(drawn)
    places = np.arange(len(words))
    places[chosen] = rng.permutation(chosen)
    exchanged = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words.take(pa.array(places)))
    return pc.binary_join(exchanged, " ")


def _cut(tables: Iterator[pa.Table], cuts: list[int]) -> Iterator[pa.Table]:
    """Rows of the tables, one after the other, from each cut to the next."""
    import pyarrow as pa

    held, low = next(tables), 0
    for start, stop in itertools.pairwise(cuts):
        while low + held.num_rows < stop:
            held = pa.concat_tables([held, next(tables)])
        yield held.slice(start - low, stop - start)
        held, low = held.slice(stop - low), stop


def _write(part: pa.Table, file: Path, row_groups: int) -> None:
    import pyarrow.parquet as pq

    rows = max(1, -(-part.num_rows // row_groups))
    pq.write_table(part, file, row_group_size=rows, compression="zstd")


def main(argv: list[str] | None = None) -> None:
    """Make the corpus and say what it is."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--corpus", required=True, help="Parquet file or folder to repeat")
    made.add_argument("--output", required=True, help="folder to make")
    made.add_argument("--bytes", type=float, default=1e9, help="bytes of text")
    made.add_argument("--files", type=int, default=16)
    made.add_argument("--row-groups", type=int, default=8, help="of a file")
    made.add_argument("--text-column", default="text")
    made.add_argument("--id-column", default="doc_id")
    given = made.parse_args(argv)
    columns = {"text_column": given.text_column, "id_column": given.id_column}
    told = make(given.corpus, given.output, int(given.bytes), given.files, given.row_groups, **columns)
    print(
        f"{given.output}: {told['n_rows']:,} documents in {told['files']} files, {told['copies']:.2f} copies"
    )


if __name__ == "__main__":
    main()
