"""What lies beside an exported graph: predict_folder.py and a README, for those who have never seen this repository."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foldwise.data.batches import unpack
from foldwise.export import predict_folder
from foldwise.export.metadata import DECISIONS, open_session, read_metadata
from foldwise.export.subject import Subject
from foldwise.inference.items import InputSpec, Items
from foldwise.inference.reading import load_batches
from foldwise.inference.tta import TTA

COMPARED = 8  # pictures
TOLERANCE = 1  # of 255: decoders of JPEG may round otherwise


def write_reader(file: Path, subject: Subject) -> list[str]:
    """Write predict_folder.py and README.md beside a graph; return a note if predict_folder.py cannot read for it."""
    session = open_session(file)
    described = read_metadata(session.get_modelmeta().custom_metadata_map, file)
    decides = DECISIONS in [output.name for output in session.get_outputs()]
    problems = predict_folder.unsupported(described) or _differences(described, subject)
    reason = "; ".join(problems)
    if not problems:
        shutil.copyfile(str(predict_folder.__file__), file.with_name("predict_folder.py"))
    file.with_name("README.md").write_text(_readme(described, reason, decides), encoding="utf-8")
    return [f"there is no predict_folder.py, which cannot read as this run does: {reason}"] * bool(problems)


def _differences(described: dict[str, Any], subject: Subject) -> list[str]:
    """Read pictures twice; the run's reader may be code of its own, which no description has."""
    model, items = subject.models[0], [*subject.held, *subject.trained][:COMPARED]
    inputs = InputSpec.of(model)
    read = Items(subject.truth.items.source, {inputs: model}, TTA(), items)
    problems = []
    for number, batch in zip(items, load_batches(read, 1, 0, torch.device("cpu")), strict=True):
        if batch.bad:
            continue
        ours = unpack(batch.batches[inputs])["image"][0].numpy()
        path = read.first.files(number)[0]
        try:
            theirs, _ = predict_folder.read_picture(path, described)
        except predict_folder.Unusable as error:
            problems.append(f"{path} {error}")
            continue
        unit = 255 if ours.dtype != np.uint8 else 1
        if ours.shape != theirs.shape or np.abs(ours.astype(float) - theirs).max() * unit > TOLERANCE:
            problems.append(
                f"{path} has other pixels when the run's own reader ({model.spec.samples['_target_']}) reads it"
            )
    return problems[:1]


README = """# {run}

A model of the task {task}, as one file, `model.onnx`: fold {folds} of the run `{run}`, identity `{identity}`.

{use}

The inputs of the file; N is any number. Pictures are {size} (height x width), channels first, colours as RGB, and not
normalised: the graph does that.

{inputs}

Its outputs:

{outputs}

The file's metadata has all of this and more, as JSON under the key `foldwise`.
{notes}"""
USE = """    pip install numpy pillow onnxruntime
    python predict_folder.py photos --out predictions.csv

`predict_folder.py` reads pictures exactly as in training; `python predict_folder.py --help` says more."""
WITHOUT = (
    "There is no `predict_folder.py`, which cannot read as this run does: {reason}. Feed the file by code of your own."
)


def _readme(described: dict[str, Any], reason: str, decides: bool) -> str:
    inputs = [
        f"- `{each['name']}`: {each['dtype']}, {' x '.join(str(length or 'N') for length in each['axes'])}"
        for each in described["inputs"]
    ]
    shapes = {"rows": "a number each", "maps": "a map each"}
    outputs = [
        f"- `{each['output']}`: {each['task']}, {shapes.get(each['kind'], each['kind'])}: {', '.join(each['columns'])}"
        for each in described["outputs"]
    ]
    outputs += [f"- `{DECISIONS}`: the answers, by the rule {described['rule']}"] * decides
    return README.format(
        **{name: described[name] for name in ("run", "task", "identity")},
        folds=", ".join(map(str, described["folds"])),
        size=" x ".join(map(str, described["size"])),
        use=WITHOUT.format(reason=reason) if reason else USE,
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
        notes="".join(f"\nNote: {note}.\n" for note in described["notes"]),
    )
