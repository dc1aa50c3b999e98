"""Which files an input names, in which order, and what is said where it names none."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmf_dask.corpus.locations import Location, parse
from nmf_dask.errors import ConfigurationError, InputDataError
from tests.parquet_files import names_of, opened, texts_of, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files written in random order, each with its own name for a text."""
    names = [
        "b.parquet",
        "a.pq",
        "sub/c.PARQUET",
        "sub/deep/d.parq",
        "sub/x 100%20[1]é.parquet",
        "year=2024/e.parquet",
        "_hidden/f.parquet",
        ".cache/g.parquet",
        "_metadata.parquet",
        ".part.parquet",
        "plain",
    ]
    random.shuffle(names)
    for name in names:
        write(tmp_path / "tree" / name, [name])
    (tmp_path / "tree" / "notes.txt").write_text("not read")
    return tmp_path / "tree"


VISIBLE = [
    "a.pq",
    "b.parquet",
    "sub/c.PARQUET",
    "sub/deep/d.parq",
    "sub/x 100%20[1]é.parquet",
    "year=2024/e.parquet",
]


@pytest.mark.parametrize("spelling", ["{}", "{}/", "file://{}", "{}/../tree/."])
def test_a_folder_means_its_visible_parquet_files_by_name(tree, spelling):
    corpus = opened(spelling.format(tree))
    assert names_of(corpus) == VISIBLE
    assert texts_of(corpus) == VISIBLE


def test_a_relative_path_is_taken_from_here(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    corpus = opened("tree")
    assert names_of(corpus) == VISIBLE
    monkeypatch.chdir("/")
    assert texts_of(corpus) == VISIBLE


def test_a_path_under_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert names_of(opened("~/tree/b.parquet")) == ["b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["b.parquet"]),
        ("*", [*VISIBLE[:2], "plain", *VISIBLE[2:]]),
        ("[ab].p*", ["a.pq", "b.parquet"]),
        ("?.pq", ["a.pq"]),
        ("**/*.parquet", ["b.parquet", "sub/x 100%20[1]é.parquet", "year=2024/e.parquet"]),
        ("**/deep/*", ["sub/deep/d.parq"]),
        ("**", VISIBLE),
        ("s*/*.PARQUET", ["sub/c.PARQUET"]),
        # A folder that matches is taken whole.
        ("year=*", ["year=2024/e.parquet"]),
        ("sub/x*", ["x 100%20[1]é.parquet"]),
    ],
)  # fmt: skip
def test_globs(tree, pattern, names):
    if pattern == "*":
        (tree / "notes.txt").unlink()
    assert names_of(opened(f"{tree}/{pattern}")) == names


def test_a_glob_does_not_walk_folders_that_cannot_match(tree, monkeypatch):
    walked = []
    real = os.walk

    def walk(*args, **options):
        for step in real(*args, **options):
            walked.append(os.path.relpath(step[0], tree))
            yield step

    monkeypatch.setattr(os, "walk", walk)
    assert names_of(opened(f"{tree}/y*/*.parquet")) == ["year=2024/e.parquet"]
    assert "sub/deep" not in walked


def test_a_path_that_exists_is_not_a_glob(tree):
    path = tree / "sub" / "x 100%20[1]é.parquet"
    assert texts_of(opened(path)) == ["sub/x 100%20[1]é.parquet"]
    uri = path.as_uri()
    assert "%20" in uri
    assert texts_of(opened(uri)) == ["sub/x 100%20[1]é.parquet"]


def test_inputs_keep_their_order_and_a_file_counts_once(tree):
    corpus = opened(tree / "sub", tree / "a.pq", f"{tree}/*.p*", tree)
    assert names_of(corpus) == [
        "c.PARQUET",
        "deep/d.parq",
        "x 100%20[1]é.parquet",
        "a.pq",
        "b.parquet",
        "year=2024/e.parquet",
    ]


def test_links_are_followed_once(tree):
    (tree / "sub" / "again").symlink_to(tree)
    (tree / "sub" / "alias.parquet").symlink_to(tree / "b.parquet")
    other = write(tree.parent / "other" / "o.parquet", ["linked"])
    (tree / "zlink").symlink_to(other.parent)
    assert texts_of(opened(tree)) == [*VISIBLE, "linked"]


def test_a_broken_link_is_named(tree):
    (tree / "sub" / "gone.parquet").symlink_to("/nowhere")
    with pytest.raises(InputDataError, match=r"gone\.parquet: it does not exist"):
        opened(tree)
    with pytest.raises(InputDataError, match=r"gone\.parquet: it links to /nowhere, which does not"):
        opened(tree / "sub" / "gone.parquet")


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        ("", "nothing", r"input \S*nothing: \S*nothing does not exist"),
        ("", "nothing/*.parquet", r"input \S*: no file matches, \S*nothing is not a folder"),
        ("empty/", "empty", r"no Parquet file in the folder \S*empty: it holds no file \(names that begin"),
        (
            "md/a.md",
            "md",
            r"1 files, the first of them a\.md, none with an end such as \.parquet.*glob.*md/\*",
        ),
        ("csv/a.csv", "csv/*.parquet", r"no file matches below \S*csv"),
        ("t/_delta_log/0.json", "t", r"this folder is a Delta Lake table.*file_uris"),
    ],
)
def test_nothing_found_says_where_it_looked(tmp_path, make, given, said):
    if make:
        target = tmp_path / make
        (target if make.endswith("/") else target.parent).mkdir(parents=True)
        if not make.endswith("/"):
            target.write_text("x")
    with pytest.raises(InputDataError, match=said) as caught:
        opened(tmp_path / given)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], r"no input: .*--input"),
        (["ftp://host/x"], r"input ftp://host: .*s3://, gs://, abfs:// or hdfs://"),
        (["s3://KEY:SECRET@bucket/x"], r"holds a key or password.*AWS_ACCESS_KEY_ID"),
        (["s3://bucket/x?secret_key=SECRET"], r"holds a key or password"),
    ],
)
def test_an_input_that_cannot_be_one_is_a_configuration_error(inputs, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        opened(*inputs)
    assert caught.value.exit_code == 2
    assert "SECRET" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("s3://b/k/x.parquet?region=eu-west-1", "b/k/x.parquet", "s3://b/k/x.parquet"),
        ("S3://b/a b/*.parquet?region=eu-west-1", "b/a b/*.parquet", "s3://b/a b/*.parquet"),
        ("s3://b/part-?.parquet?region=eu-west-1", "b/part-?.parquet", "s3://b/part-?.parquet"),
        ("s3://b/100%25/%C3%A9?region=eu-west-1", "b/100%/é", "s3://b/100%25/é"),
        ("s3://b?region=eu-west-1", "b", "s3://b/"),
        ("gs://b/k/", "b/k", "gs://b/k"),
        ("abfs://box@account.dfs.core.windows.net/k", "box/k", "abfs://box@account.dfs.core.windows.net/k"),
        ("file:///a%20b/c", "/a b/c", "/a b/c"),
        ("/a%20b/c", "/a%20b/c", "/a%20b/c"),
    ],
)
def test_uris_become_paths_and_back(text, path, shown):
    location = parse(text)
    assert location.path == path
    assert str(location) == shown


def test_a_location_is_two_strings():
    assert parse("/a") == Location("", "/a")


@pytest.fixture
def powerless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A readable folder, looked at by a user who may not do everything."""
    folder = tmp_path_factory.mktemp("powerless")
    if os.geteuid():
        yield folder
        return
    for parent in (
        folder,
        *folder.parents[:3],
    ):  # of more than one process of pytest, each has a folder of its own
        parent.chmod(0o755)
    os.seteuid(65534)
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_named(powerless):
    os.seteuid(os.getuid())
    write(powerless / "locked" / "a.parquet")
    write(powerless / "b.parquet").chmod(0)
    (powerless / "locked").chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    for given, named in (
        ("b.parquet", "b.parquet"),
        (".", "locked"),
        ("locked/a.parquet", "locked/a.parquet"),
    ):
        with pytest.raises(InputDataError, match=r"this user may not.*Grant read access") as caught:
            opened(powerless / given)
        assert str(powerless / named) in str(caught.value)
    os.seteuid(os.getuid())
    (powerless / "locked").chmod(0o755)


def test_a_name_that_is_not_utf_8_is_told(tmp_path):
    write(tmp_path / "a.parquet")
    shutil.copy(tmp_path / "a.parquet", os.fsencode(tmp_path) + b"/\xff.parquet")
    with pytest.raises(InputDataError, match=r"not valid UTF-8\. Rename it"):
        opened(tmp_path)
