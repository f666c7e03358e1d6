"""The user's own network: package.module:factory, or path/file.py:factory. That code is run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from fragile_neurons.errors import InputError


def make_own(name: str) -> nn.Module:
    """What the factory returns when it is called without arguments; raises InputError if it cannot be."""
    place, _, attribute = name.rpartition(":")
    is_file = place.endswith(".py")
    path = Path(os.path.expanduser(place)).absolute()
    if is_file and not path.is_file():
        raise _unusable(f"there is no file {place}", name)
    with _importing_from(path.parent if is_file else Path.cwd()):
        try:
            home = _load_file(path) if is_file else importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise _unusable(f"{place} cannot be imported: {_told(error)}", name) from error
        factory = getattr(home, attribute, None)
        if factory is None:
            raise _unusable(f"{place} has no {attribute or 'factory named after the colon'}", name)
        try:
            module: object = factory if isinstance(factory, nn.Module) else factory()
        except (Exception, SystemExit) as error:
            raise _unusable(f"{attribute}() failed: {_told(error)}", name) from error
    if not isinstance(module, nn.Module):
        raise _unusable(f"{attribute}() returns a {type(module).__name__}, not a torch.nn.Module", name)
    return module


def absolute(name: str) -> str:
    """The same network, named so that it is found from any folder."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(os.path.expanduser(place)).absolute()}:{attribute}" if place.endswith(".py") else name


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

    What was imported from it is forgotten afterwards: a folder of another network may have modules
    of the same names.
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


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _unusable(problem: str, name: str) -> InputError:
    return InputError(
        problem,
        given=name,
        allowed="package.module:factory or path/file.py:factory, callable without arguments",
        fix="write a function without parameters that returns the network",
    )
