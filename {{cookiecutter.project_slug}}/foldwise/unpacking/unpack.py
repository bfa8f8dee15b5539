"""Unpack a folder of files in several processes into images and one table.

    OUT/images/<file>/00000.jpg     the images of a file
    OUT/rows/<file>.json            its rows, written after its images: what has it is not unpacked again
    OUT/table.csv                   id, image, unit, order, file and what else the file says, sorted
    OUT/bad_files.csv               file, problem

Images are plain files, a folder per file: measured against one zip archive per video, see docs/data.md.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.errors import Refusal, explain
from foldwise.files import publish, read_json, write_csv, write_json
from foldwise.progress import Progress, silent, stepping
from foldwise.unpacking.dicom import Dicom
from foldwise.unpacking.video import Video

Unpacker = Video | Dicom


@dataclass(frozen=True)
class Result:
    """What unpacking wrote: numbers of files, images and units, and the problem of each bad file."""

    files: int
    images: int
    units: int
    bad: dict[str, str]


def unpack(
    source: Path, out: Path, unpacker: Unpacker, suffixes: Sequence[str], processes: int, progress: Progress = silent
) -> Result:
    """Unpack all files below `source` with one of the suffixes; files that are already unpacked are skipped.

    Bad files do not stop it; they are tried again by the next call.

    Raises:
        Refusal: no such files, `out` was made with other settings, or an unpacked file has changed since.
    """
    files = _find(source, suffixes)
    _check_settings(out, unpacker)
    unpacked = _read_rows(out, files)
    _check_unchanged(files, unpacked)
    waiting = {key: path for key, path in files.items() if key not in unpacked}
    step = stepping(progress, "files", len(files), len(files) - len(waiting))
    bad: dict[str, str] = {}
    with ProcessPoolExecutor(processes) as pool:
        jobs = {pool.submit(_unpack_one, unpacker, path, out, key): path for key, path in waiting.items()}
        try:
            for job in as_completed(jobs):
                if problem := job.result():
                    bad[jobs[job].relative_to(source).as_posix()] = problem
                step()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table = _table(source, files, unpacked | _read_rows(out, waiting))
    write_csv(out / "bad_files.csv", pd.DataFrame(sorted(bad.items()), columns=["file", "problem"]))
    if table.empty:
        first = next(iter(sorted(bad.items())))
        raise Refusal(f"none of the {len(files):,} files in {source} could be unpacked; {first[0]}: {first[1]}")
    write_csv(out / "table.csv", table)
    return Result(len(files), len(table), table["unit"].nunique(), bad)


def _find(source: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by key: the path below `source` without suffix, with - for /; keys that would repeat keep the suffix."""
    if not source.is_dir():
        raise Refusal(f"there is no folder {source}")
    paths = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in suffixes and path.is_file() and path.name != "DICOMDIR" and path.name[0] != "."
    ]
    if not paths:
        known = ", ".join(suffix or "no suffix" for suffix in suffixes)
        raise Refusal(f"{source} has no files to unpack; files with these suffixes are: {known}")
    short = [_key(path.relative_to(source).with_suffix("")) for path in paths]
    repeated = pd.Series(short).duplicated(keep=False)
    keys = [
        _key(path.relative_to(source)) if again else key
        for path, key, again in zip(paths, short, repeated, strict=True)
    ]
    if len(set(keys)) < len(keys):
        same = pd.Series([str(path) for path in paths])[pd.Series(keys).duplicated(keep=False)].tolist()
        raise Refusal(f"these files would get the same name: {', '.join(same[:4])}; rename one")
    return dict(zip(keys, paths, strict=True))


def _key(path: Path) -> str:
    return path.as_posix().replace("/", "-")


def _rows_file(out: Path, key: str) -> Path:
    return out / "rows" / f"{key}.json"


def _check_settings(out: Path, unpacker: Unpacker) -> None:
    settings = json.loads(json.dumps({"kind": type(unpacker).__name__.lower(), **asdict(unpacker)}))
    path = out / "unpack.json"
    if path.exists() and (before := read_json(path)) != settings:
        changed = [
            f"{name} {before.get(name)!r}, now {value!r}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        raise Refusal(f"{out} was made with other settings ({'; '.join(changed)}): choose another --out")
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise Refusal(f"{out} exists and is not of this command: choose another --out")
        write_json(path, settings)


def _read_rows(out: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What was written of the files that are unpacked, by key."""
    return {key: read_json(_rows_file(out, key)) for key in keys if _rows_file(out, key).exists()}


def _check_unchanged(files: Mapping[str, Path], unpacked: Mapping[str, Any]) -> None:
    changed = [files[key] for key, record in unpacked.items() if record["bytes"] != files[key].stat().st_size]
    if changed:
        raise Refusal(
            f"{len(changed)} files changed after they were unpacked, such as {changed[0]}: choose another --out"
        )


def _unpack_one(unpacker: Unpacker, path: Path, out: Path, key: str) -> str | None:
    """Unpack one file and write its rows; return its problem if it is bad."""
    target = out / "images" / key
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # images without rows: a run was killed between the two
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks on tags name no file
            rows = unpacker.unpack(path, temporary)
        publish(temporary, target)
    except Exception as error:
        return _problem(error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_json(_rows_file(out, key), {"bytes": path.stat().st_size, "rows": [asdict(row) for row in rows]})
    return None


def _problem(error: Exception) -> str:
    """Message of a bad file; errors of the disk and bugs are raised again."""
    sentence = explain(error)
    if sentence is None or isinstance(error, OSError):
        raise error
    return sentence


def _table(source: Path, files: Mapping[str, Path], unpacked: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of all unpacked files, sorted by unit and order, which is counted from 0 in each unit."""
    frame = pd.DataFrame(_table_rows(source, files, unpacked))
    if frame.empty:
        return frame
    frame = frame.sort_values(["unit", "order", "image"], kind="stable").reset_index(drop=True)
    frame["order"] = frame.groupby("unit").cumcount()
    frame["id"] = frame["unit"] + "_" + frame["order"].map("{:05d}".format)
    first = ["id", "image", "unit", "order"]
    return frame[first + [name for name in frame if name not in first]].dropna(axis=1, how="all")


def _table_rows(source: Path, files: Mapping[str, Path], unpacked: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    for key, path in files.items():
        file = path.relative_to(source).as_posix()
        for row in unpacked[key]["rows"] if key in unpacked else []:
            image = f"images/{key}/{row['image']}"
            yield {"image": image, "unit": row["unit"] or key, "order": row["order"], "file": file, **row["facts"]}
