"""The user's own code: package.module:name or path/file.py:name. That code is run."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


class UnusableError(Exception):
    """What is wrong with a name, or with the code behind it."""


@contextmanager
def opened(name: str) -> Iterator[object]:
    """What this name stands for; inside the block, its folder heads the import path.

    Raises UnusableError where there is nothing of this name or its module cannot be imported.
    """
    place, _, attribute = name.rpartition(":")
    is_file = place.endswith(".py")
    path = Path(os.path.expanduser(place)).absolute()
    if is_file and not path.is_file():
        raise UnusableError(f"there is no file {place}")
    with _importing_from(path.parent if is_file else Path.cwd()):
        try:
            home = _load_file(path) if is_file else importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise UnusableError(f"{place} cannot be imported: {describe(error)}") from error
        if not attribute or not hasattr(home, attribute):
            raise UnusableError(f"{place} has no {attribute or 'name after the colon'}")
        yield getattr(home, attribute)


def absolute(name: str) -> str:
    """The same, named so that it is found from any folder."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(os.path.expanduser(place)).absolute()}:{attribute}" if place.endswith(".py") else name


def source_sha256(name: str) -> str:
    """The checksum of the file that a name says, and of its code's if another; UnusableError if none."""
    place = name.rpartition(":")[0]
    is_file = place.endswith(".py")
    with opened(name) as found:
        homes = [*([] if is_file else [place]), _code(found).__module__]
        named = [getattr(sys.modules.get(home), "__file__", None) for home in homes]
    files = dict.fromkeys([os.path.abspath(os.path.expanduser(place)) if is_file else None, *named])
    found_files = [file for file in files if file is not None]
    if not found_files:
        raise UnusableError(f"{place} has no file of its own")
    digest = hashlib.sha256()
    for file in found_files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _code(found: Any) -> Any:
    """The function or class behind a partial, a method, a wrapper or an instance."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(getattr(found, "__func__", found))
    return found if inspect.isfunction(found) or inspect.isclass(found) else type(found)


def describe(error: BaseException) -> str:
    """An error of somebody else's code in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        if known is not None:
            sys.modules[path.stem] = known
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """The folder at the head of the import path, as Python has it for a script there.

    What was imported from it is forgotten afterwards: another folder may have modules of the same
    names.
    """
    paths, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, os.fspath(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in set(sys.modules) - known:
            spec = getattr(sys.modules[name], "__spec__", None)
            # a folder without __init__.py is a package too, but has no origin
            places = [
                getattr(spec, "origin", None),
                *(getattr(spec, "submodule_search_locations", None) or ()),
            ]
            within = os.path.join(folder, name.partition(".")[0])
            if any(place is not None and place.startswith(within) for place in places):
                del sys.modules[name]
