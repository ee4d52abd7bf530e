"""Write files and folders whole or not at all: a full disk or a killed kernel leaves what was there before."""
from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, a file or a folder; move it to `path` when the block has ended without an error.

    A file replaces the one before. A folder that was there before is kept, as NAME_previous, unless it holds the same.
    """
    path = Path(path)
    part = path.with_name(f"{path.stem}.part{path.suffix}")  # beside it: a move within one disk copies nothing
    _remove(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if part.is_dir() and path.is_dir():
            if _same(part, path):
                return
            keep_as_previous(path)
        part.replace(path)
    finally:
        _remove(part)


def keep_as_previous(folder: Path) -> Path:
    """Rename a folder to NAME_previous, and return that; what had this name is removed."""
    previous = folder.with_name(f"{folder.name}_previous")
    _remove(previous)
    return folder.rename(previous)


def _same(one: Path, other: Path) -> bool:
    names = [sorted(file.name for file in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
