"""Files that are right, laid out in every way, and folders that hold more than Parquet."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq

from tests.fuzz.cases import (
    ID_FLAGS,
    Random,
    heads,
    kind,
    layout_of,
    maybe_ids,
    named,
    one_of,
    table_of,
    texts_of,
    write_clean,
)
from tests.fuzz.expected import DONE, WRONG_DATA, WRONG_USAGE, Expected


@kind(40)
def any_layout(random: Random, folder: Path) -> Expected:
    """Codecs, page versions, checksums, encodings, sizes; a file of each."""
    tables = [write_clean(random, folder / f"{n}.parquet") for n in range(int(random.integers(1, 5)))]
    ids = pa.concat_arrays([table["doc_id"].combine_chunks() for table in tables])
    return Expected((DONE,), len(ids), ids, arguments=ID_FLAGS)


@kind(20)
def cut_partitions(random: Random, folder: Path) -> Expected:
    """Partitions of a few rows, which begin anywhere in a row group."""
    table = write_clean(random, folder / "a.parquet", texts_of(random, 150), row_group_size=1000)
    small = ("--set", f"corpus.partition_bytes={int(random.integers(300, 3000))}")
    return Expected((DONE,), table.num_rows, table["doc_id"].combine_chunks(), arguments=(*ID_FLAGS, *small))


@kind(6)
def format_versions(random: Random, folder: Path) -> Expected:
    table = table_of(texts_of(random))
    options = {"version": one_of(random, ("1.0", "2.4", "2.6")), "store_schema": heads(random)}
    pq.write_table(table, folder / "a.parquet", **layout_of(random), **options)
    return Expected((DONE,), table.num_rows, arguments=maybe_ids(random))


@kind(5)
def no_row_groups(random: Random, folder: Path) -> Expected:
    """A file without any row, alone or beside others; its columns may have no type worth the name."""
    table = table_of(texts_of(random))
    empty = one_of(random, (table.schema, pa.schema([("doc_id", pa.null()), ("text", pa.null())])))
    with pq.ParquetWriter(folder / "empty.parquet", empty):
        pass
    if heads(random):
        return Expected(
            (WRONG_DATA,), says=named("no document", "empty.parquet"), arguments=maybe_ids(random)
        )
    pq.write_table(table, folder / "a.parquet")
    return Expected((DONE,), table.num_rows, arguments=maybe_ids(random))


@kind(8)
def empty_row_groups(random: Random, folder: Path) -> Expected:
    table = table_of(texts_of(random))
    with pq.ParquetWriter(folder / "a.parquet", table.schema) as writer:
        for low in range(0, table.num_rows, 5):
            for _ in range(int(random.integers(3))):
                writer.write_table(table[:0])
            writer.write_table(table[low : low + 5])
        writer.write_table(table[:0])
    return Expected((DONE,), table.num_rows, table["doc_id"].combine_chunks(), arguments=ID_FLAGS)


@kind(2)
def thousands_of_row_groups(random: Random, folder: Path) -> Expected:
    table = table_of(texts_of(random, 2500))
    pq.write_table(table, folder / "a.parquet", row_group_size=1)
    return Expected((DONE,), table.num_rows, arguments=maybe_ids(random))


@kind(3)
def many_files(random: Random, folder: Path) -> Expected:
    for number in range(200):
        below = folder / f"day={number % 7}"
        below.mkdir(exist_ok=True)
        pq.write_table(table_of(["one two", "two three"]), below / f"{number}.parquet")
    return Expected((DONE,), 400, arguments=maybe_ids(random))


@kind(10)
def odd_file_names(random: Random, folder: Path) -> Expected:
    names = (
        "a b",
        "a'b",
        'a"b',
        "a%20b",
        "a?b",
        "a#b",
        "[ab]",
        "a*b",
        "{a}",
        "é",
        "a\nb",
        "-k",
        "x" * 240,
        "日本",
    )
    name = one_of(random, names)
    table = write_clean(random, folder / f"{name}.parquet")
    ids = table["doc_id"].combine_chunks()
    if heads(random):
        return Expected(
            (DONE,), table.num_rows, ids, arguments=ID_FLAGS, inputs=(str(folder / f"{name}.parquet"),)
        )
    return Expected((DONE,), table.num_rows, ids, arguments=ID_FLAGS)


@kind(3)
def file_names_that_are_not_utf_8(random: Random, folder: Path) -> Expected:
    write_clean(random, folder / "a.parquet")
    os.rename(folder / "a.parquet", os.fsencode(folder) + b"/b\xff.parquet")
    return Expected((WRONG_DATA,), says=named("not valid UTF-8"))


@kind(8)
def inputs_that_overlap(random: Random, folder: Path) -> Expected:
    """A file named twice is read once."""
    table = write_clean(random, folder / "a.parquet")
    (folder / "link.parquet").symlink_to("a.parquet")
    inputs = (str(folder), str(folder / "*.parquet"), str(folder / "a.parquet"), f"file://{folder}/a.parquet")
    chosen = tuple(one_of(random, inputs) for _ in range(int(random.integers(1, 4))))
    return Expected(
        (DONE,), table.num_rows, table["doc_id"].combine_chunks(), arguments=ID_FLAGS, inputs=chosen
    )


@kind(25)
def not_parquet(random: Random, folder: Path) -> Expected:
    """Something else under a name that ends in .parquet, alone or beside a file that is right."""
    path = folder / "b.parquet"
    texts = texts_of(random)
    contents = {
        "text": "\n".join(texts).encode(),
        "csv": b"doc_id,text\n" + b"\n".join(f"{i},{text}".encode() for i, text in enumerate(texts)),
        "json": b"\n".join(json.dumps({"text": text}).encode() for text in texts),
        "gzip": gzip.compress("\n".join(texts).encode()),
        "bz2": bz2.compress(b"x" * 100),
        "magic": b"PAR1",
        "twice": b"PAR1PAR1",
        "thrice": b"PAR1PAR1PAR1",
        "noise": random.bytes(500),
        "noise in magic": b"PAR1" + random.bytes(500) + b"PAR1",
        "encrypted": b"PARE" + random.bytes(500) + b"PARE",
        "html": b"<!DOCTYPE html><title>404 Not Found</title>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "newlines": b"\n" * 100,
        "utf-16": "\n".join(texts).encode("utf-16"),
    }
    path.write_bytes(contents[one_of(random, sorted(contents))])
    if heads(random):
        write_clean(random, folder / "a.parquet")
    return Expected((WRONG_DATA,), says=named("b.parquet"), arguments=maybe_ids(random))


@kind(8)
def other_formats(random: Random, folder: Path) -> Expected:
    """Files of Arrow's other formats, and a Parquet file that was compressed as a whole."""
    path = folder / "b.parquet"
    table = table_of(texts_of(random))
    which = int(random.integers(4))
    if which == 0:
        pyarrow.feather.write_feather(table, str(path))
    elif which == 1:
        pyarrow.orc.write_table(table, str(path))
    else:
        pq.write_table(table, folder / "whole")
        content = (folder / "whole").read_bytes()
        if which == 2:
            path.write_bytes(gzip.compress(content))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.parquet", content)
    return Expected((WRONG_DATA,), says=named("b.parquet", "not a Parquet file"))


@kind(12)
def no_files(random: Random, folder: Path) -> Expected:
    """Names that end in .parquet and are not files, or are not there."""
    path = folder / "a.parquet"
    which = int(random.integers(6))
    if which == 0:
        os.mkfifo(path)
    elif which == 1:
        with socket.socket(socket.AF_UNIX) as server:
            # The path of a socket may have a hundred bytes; one by way of the descriptor is short.
            descriptor = os.open(folder, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{descriptor}/a.parquet")
            os.close(descriptor)
    elif which == 2:
        path.symlink_to("nowhere")
    elif which == 3:
        path.symlink_to("a.parquet")
    elif which == 4:
        path.symlink_to("/dev/zero")
    elif which == 5:
        path.mkdir()
        return Expected((WRONG_DATA,), says=named("no Parquet file", folder.name))
    alone = (str(path),) if heads(random) else ()
    return Expected((WRONG_DATA,), says=named("a.parquet"), inputs=alone)


@kind(5)
def folders_named_as_files(random: Random, folder: Path) -> Expected:
    """Spark writes a folder of that name."""
    below = folder / "a.parquet"
    below.mkdir()
    table = write_clean(random, below / "part-0.parquet")
    (below / "_SUCCESS").touch()
    (below / ".part-0.parquet.crc").write_bytes(b"crc")
    return Expected((DONE,), table.num_rows, table["doc_id"].combine_chunks(), arguments=ID_FLAGS)


@kind(5)
def files_beside(random: Random, folder: Path) -> Expected:
    """Notes beside a corpus are not looked at, nor what begins with a dot."""
    table = write_clean(random, folder / "a.parquet")
    for name in ("README.md", "b.txt", "b.json", "_metadata", ".hidden.parquet", "_c.parquet"):
        (folder / name).write_text("nothing here")
    return Expected((DONE,), table.num_rows, arguments=maybe_ids(random))


@kind(10)
def wrong_inputs(random: Random, folder: Path) -> Expected:
    """Inputs that lead nowhere, and one that cannot be an input."""
    nowhere = str(folder / one_of(random, ("b.parquet", "*.parquet", "x/**", "[", "a.parquet/b.parquet")))
    (folder / "notes.txt").write_text("nothing here")
    if heads(random):
        return Expected((WRONG_DATA,), says=named(nowhere), inputs=(nowhere,))
    scheme = one_of(
        random, ("ftp://host/a.parquet", "://", "http://host/a.parquet", "s3://key:secret@bucket/a")
    )
    return Expected((WRONG_USAGE, WRONG_DATA), inputs=(scheme,))


@kind(15)
def few_documents(random: Random, folder: Path) -> Expected:
    """As many documents as topics are enough, one fewer is not."""
    n = int(random.integers(1, 6))
    k = n + int(random.integers(2))
    texts = [f"{text} own{i}a own{i}b" for i, text in enumerate(texts_of(random, n))]
    write_clean(random, folder / "a.parquet", texts)
    says = named(f"{n} documents cannot make {k} topics", "-k")
    return Expected(
        (DONE,) if k == n else (WRONG_DATA,), n, says=says, arguments=("-k", str(k), *maybe_ids(random))
    )


@kind(10)
def few_features(random: Random, folder: Path) -> Expected:
    """As many terms as topics are enough, one fewer is not."""
    n_terms = int(random.integers(1, 6))
    k = n_terms + int(random.integers(2))
    terms = np.array([f"term{i}" for i in range(n_terms)])
    texts = [" ".join(random.choice(terms, 3)) for _ in range(20)] + terms.tolist()
    write_clean(random, folder / "a.parquet", texts)
    says = named(f"{n_terms} features are left for {k} topics", "-k", "min_df")
    return Expected(
        (DONE,) if k == n_terms else (WRONG_DATA,),
        len(texts),
        says=says,
        arguments=("-k", str(k), *maybe_ids(random)),
    )
