"""Which modules of the project this process has loaded, and a digest of each one's file.

A module counts if it was loaded with the tasks, has a file, and is neither Python's own nor installed nor
part of this package: so the tasks, and what they import from the project's folder or from PYTHONPATH. Bytes
are read as soon as the tasks are loaded: they are those that were loaded, but for an edit in that moment.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_INSTALLED = ("/site-packages/", "/dist-packages/")
_OWN_FOLDER = Path(__file__).resolve().parent
_PYTHONS_FOLDERS = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_DIGEST_BYTES = 8


def project_modules(before: Iterable[str]) -> dict[str, str]:
    """Digests of the project's modules that were not loaded before."""
    return {name: digest_of(path) for name, path in files_of(before).items()}


def files_of(before: Iterable[str]) -> dict[str, Path]:
    """Files of the project's modules that were not loaded before."""
    known = frozenset(before)
    found: dict[str, Path] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in known or not isinstance(file, str) or any(each in file for each in _INSTALLED):
            continue
        path = Path(file)
        if _is_of_project(path):
            found[name] = path
    return found


def _is_of_project(path: Path) -> bool:
    folder = path.resolve().parent
    return not any(folder.is_relative_to(each) for each in (_OWN_FOLDER, *_PYTHONS_FOLDERS))


def digest_of(path: Path) -> str:
    """Also of a file that is gone again, which equals no other."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=_DIGEST_BYTES).hexdigest()
    except OSError:
        return "gone"
