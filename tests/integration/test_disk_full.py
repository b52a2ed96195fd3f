"""A disk that fills up while a study runs or is exported: one clear error, and on from there once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import run_study
from scheduler_search.errors import DatabaseError, ScheduleDocumentError
from scheduler_search.schedule.document import read_document
from scheduler_search.storage import StudyDatabase
from tests.integration.chaos_driver import NAME, SlowExecutor, coordinate, definition, export
from tests.integration.processes import errors, executed, start
from tests.integration.records import records

pytestmark = pytest.mark.slow

SECONDS = 60
DISK = 4 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran with all the room it needed, and of its export."""
    folder = tmp_path_factory.mktemp("undisturbed")
    coordinate(f"sqlite:///{folder}/study.db", folder, 0.0)
    return folder


def fill(disk: Path, free: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    subprocess.run(["fallocate", "--length", str(DISK - used(disk) - free), str(ballast)], check=True)
    return ballast


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def digest(folder: Path) -> str:
    return read_document(folder / "simulated" / f"{NAME}.v1.json").digest


def ended_with_an_error(url: str, folder: Path, largest_file: int | None = None) -> str:
    """Run the study in a process that ends with exit code 2; the line that users see."""
    before = len(errors(folder))
    process = start(url, folder, pause=0.0, largest_file=largest_file)
    process.join(SECONDS)
    assert process.exitcode == 2
    (line,) = errors(folder)[before:]
    assert "the study database must be usable" in line
    return line


# The tables alone take about 400 KiB, in the write-ahead log and in the file; the whole study a few hundred more.
@pytest.mark.parametrize(("free", "begun"), [(100, False), (1100, True), (1400, True)])
def test_a_study_on_a_full_disk_goes_on_once_there_is_room(
    disk: Path, tmp_path: Path, undisturbed: Path, free: int, begun: bool
) -> None:
    url = f"sqlite:///{disk}/study.db"
    ballast = fill(disk, free * 1024)
    assert "full" in ended_with_an_error(url, tmp_path)
    assert bool(executed(tmp_path)) == begun
    # There is still no room: the same again, and never a traceback.
    assert "full" in ended_with_an_error(url, tmp_path)
    ballast.unlink()
    coordinate(url, tmp_path, 0.0)
    assert records(url) == records(f"sqlite:///{undisturbed}/study.db")
    assert digest(tmp_path) == digest(undisturbed)


def test_a_study_in_a_file_that_may_not_grow_goes_on_once_it_may(tmp_path: Path, undisturbed: Path) -> None:
    """A quota, which every user can set: the error is not that of a full disk."""
    url = f"sqlite:///{tmp_path}/study.db"
    StudyDatabase.open(url).close()
    largest = sum((path.stat().st_size for path in tmp_path.glob("study.db*")), 200 * 1024)
    ended_with_an_error(url, tmp_path, largest)
    coordinate(url, tmp_path, 0.0)
    assert records(url) == records(f"sqlite:///{undisturbed}/study.db")
    assert digest(tmp_path) == digest(undisturbed)


def test_an_export_to_a_full_disk_leaves_no_half_document(disk: Path, tmp_path: Path, undisturbed: Path) -> None:
    url = f"sqlite:///{undisturbed}/study.db"
    ballast = fill(disk, 4096)
    with StudyDatabase.open(url) as database:
        arguments = database, database.study(NAME), SlowExecutor(0.0, tmp_path / "executed.txt"), disk
        with pytest.raises(ScheduleDocumentError, match="No space left on device") as refused:
            export(*arguments)
        assert refused.value.exit_code == 2
        assert [path for path in disk.rglob("*") if path.is_file()] == [ballast]
        ballast.unlink()
        export(*arguments)
    assert (disk / "simulated" / f"{NAME}.v1.json").read_bytes() == (
        undisturbed / "simulated" / f"{NAME}.v1.json"
    ).read_bytes()


def test_an_export_from_a_database_on_a_full_disk_writes_no_document(
    disk: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """The validation cannot be recorded, and what is not recorded is not published."""
    url, out = f"sqlite:///{disk}/study.db", tmp_path / "out"
    executor = SlowExecutor(0.0, tmp_path / "executed.txt")
    with StudyDatabase.open(url) as database:
        study = database.add_study(definition())
        run_study(database, study, executor)
        ballast = fill(disk, 0)
        with pytest.raises(DatabaseError, match=r"full.*free some space") as refused:
            export(database, study, executor, out)
        assert refused.value.exit_code == 2
        assert not out.exists()
        ballast.unlink()
        export(database, study, executor, out)
    assert digest(out) == digest(undisturbed)
