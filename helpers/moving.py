"""Put what was written into its place."""
import time
from pathlib import Path


def move(path: Path, target: Path) -> None:
    """Rename; where the system refuses, try again for two seconds, since on Windows a virus scanner may have a file open.

    Raises PermissionError if it still refuses, and at once any other OSError.
    """
    end = time.monotonic() + 2
    while True:
        try:
            path.replace(target)
            return
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
