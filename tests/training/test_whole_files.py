import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from real_failures import as_nobody, no_file_can_grow

from helpers.training.saving import written_whole

KILLED = """
import os, signal, sys
from helpers.training.saving import written_whole
with written_whole(sys.argv[1]) as part:
    if sys.argv[2] == "file":
        part.write_text("half")
    else:
        part.mkdir()
        (part / "weights").write_text("half")
        (part / "of_the_killed_run").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_folder(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(text)


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
    for text in ("one", "two"):
        with written_whole(tmp_path / "new" / "loss.png") as part:
            part.write_text(text)
            assert part.suffix == ".png" and part.parent == tmp_path / "new"  # the suffix tells matplotlib the format
    assert [(file.name, file.read_text()) for file in (tmp_path / "new").iterdir()] == [("loss.png", "two")]


LOCKED = """
import os, sys, threading
from pathlib import Path
from helpers.training.saving import written_whole
with written_whole(Path(sys.argv[1]) / "adapter") as part:
    part.mkdir()
    (part / "weights").write_text("trained")
    os.chmod(sys.argv[1], 0o500)
    if sys.argv[2] == "for a moment":
        threading.Timer(0.7, os.chmod, (sys.argv[1], 0o700)).start()
"""


@pytest.mark.parametrize("how_long", ["for a moment", "for good"])
def test_what_cannot_be_moved_is_tried_again_and_never_thrown_away(tmp_path, how_long):
    """In a folder whose owner has taken his right to write away."""
    (tmp_path / "outputs").mkdir()
    done = subprocess.run([*as_nobody(), sys.executable, "-c", LOCKED, str(tmp_path / "outputs"), how_long], capture_output=True, text=True)
    (tmp_path / "outputs").chmod(0o700)
    moved = how_long == "for a moment"
    assert (done.returncode == 0) == moved and ("nothing is lost: what was written is in" in done.stderr) != moved, done.stderr
    assert (tmp_path / "outputs" / ("adapter" if moved else "adapter.part-of-course") / "weights").read_text() == "trained"


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_a_link_stays_one_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "disk" / "real.json")
    with written_whole(tmp_path / "link.json") as part:
        part.write_text("x")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "disk" / "real.json").read_text() == "x"


def test_a_folder_is_replaced_and_the_one_before_is_kept(tmp_path):
    for text in ("one", "two", "three"):
        with written_whole(tmp_path / "adapter") as part:
            write_folder(part, text)
    assert (tmp_path / "adapter" / "weights").read_text() == "three"
    assert (tmp_path / "adapter_previous" / "weights").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_folder_again_does_not_push_out_the_one_before(tmp_path):
    for text in ("one", "two", "two"):
        with written_whole(tmp_path / "adapter") as part:
            write_folder(part, text)
    assert (tmp_path / "adapter_previous" / "weights").read_text() == "one"


@pytest.mark.parametrize(("one", "other"), [(["weights"], ["weights", "README.md"]), (["weights", "README.md"], ["weights"]), (["weights"], ["weights"])])
def test_a_folder_with_other_files_or_other_bytes_is_another_one(tmp_path, one, other):
    for text, names in (("one", one), ("one" if one != other else "two", other)):
        with written_whole(tmp_path / "adapter") as part:
            part.mkdir()
            for name in names:
                (part / name).write_text(text)
                os.utime(part / name, (0, 0))  # the same length and the same time
    assert sorted(file.name for file in (tmp_path / "adapter_previous").iterdir()) == sorted(one)
    assert (tmp_path / "adapter_previous" / "weights").read_text() == "one"


def test_a_folder_is_moved_and_not_copied(tmp_path):
    for text in ("one", "two"):
        with written_whole(tmp_path / "adapter") as part:
            write_folder(part, text)
            number = part.stat().st_ino
        assert (tmp_path / "adapter").stat().st_ino == number


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_one_is_there_and_whole(tmp_path, kind, error):
    path, full = tmp_path / "adapter", no_file_can_grow() if error is OSError else nullcontext()
    path.write_text("old") if kind == "file" else write_folder(path, "old")
    with full, pytest.raises(error), written_whole(path) as part:
        part.write_text("half") if kind == "file" else write_folder(part, "half")
        raise KeyboardInterrupt
    assert (path if kind == "file" else path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is Unix's")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_after_a_kill_the_old_one_is_whole_and_the_next_one_arrives(tmp_path, kind):
    path = tmp_path / "adapter"
    path.write_text("old") if kind == "file" else write_folder(path, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, path, kind]).returncode == -signal.SIGKILL
    assert (path if kind == "file" else path / "weights").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # the half one has another name
    with written_whole(path) as part:
        part.write_text("new") if kind == "file" else write_folder(part, "new")
    assert (path if kind == "file" else path / "weights").read_text() == "new"
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.rglob("of_the_killed_run"))


def test_nothing_written_is_an_error_and_leaves_the_old_one(tmp_path):
    (tmp_path / "note.json").write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "note.json"):
        pass
    assert (tmp_path / "note.json").read_text() == "old"
