"""Whose directory it is, and whether it can hold what comes."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from launcher.datadir import claimed
from launcher.errors import DataLocked, DataUnusable, DiskFull
from launcher.layout import Layout, Limits


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def test_a_directory_that_has_other_files_is_never_emptied(layout: Layout) -> None:
    layout.data.mkdir()
    (layout.data / "thesis.txt").write_text("ten years of work")

    with pytest.raises(DataUnusable, match="is not a data directory of Synod"), claimed(layout, fresh=True):
        raise AssertionError("claimed what is not ours")

    assert [file.name for file in layout.data.iterdir()] == ["thesis.txt"]


def test_fresh_empties_what_is_ours(layout: Layout) -> None:
    with claimed(layout):
        (layout.data / "postgres").mkdir()
        (layout.data / "postgres" / "data").touch()
        (layout.data / "link").symlink_to("/etc")
    with claimed(layout, fresh=True):
        assert {entry.name for entry in layout.data.iterdir()} == {"keys", "logs", "lock", "synod-data.json"}
    assert Path("/etc").exists()


def test_data_stays_unless_fresh(layout: Layout) -> None:
    with claimed(layout):
        (layout.data / "kept").touch()
    with claimed(layout):
        assert (layout.data / "kept").exists()


def test_a_claim_ends_with_its_block(layout: Layout) -> None:
    with claimed(layout), pytest.raises(DataLocked, match="is held by process"), claimed(layout):
        raise AssertionError("claimed twice")
    with claimed(layout):
        assert layout.keys.is_dir()


def test_too_little_space_is_told_in_figures(layout: Layout) -> None:
    hungry = replace(layout, limits=Limits(disk_free_bytes_min=2**60))
    with pytest.raises(DiskFull, match=r"MiB are free on its disk, 1099511627776 MiB are needed"), claimed(hungry):
        raise AssertionError("claimed without space")


def test_data_of_a_later_format_is_refused(layout: Layout) -> None:
    layout.data.mkdir()
    (layout.data / "synod-data.json").write_text('{"kind": "synod-data", "format": 2}')
    with pytest.raises(DataUnusable, match="is of format 2, this version writes 1"), claimed(layout):
        raise AssertionError("claimed a later format")


def test_a_disk_that_is_full_is_told_from_one_that_is_not_writable(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataUnusable) as unusable, claimed(replace(layout, data=tmp_path / "file" / "data")):
        raise AssertionError("claimed below a file")
    assert unusable.value.field == "data"
    assert "--data" in unusable.value.remedy
    assert isinstance(unusable.value.__cause__, OSError)
    assert unusable.value.__cause__.errno == errno.ENOTDIR
