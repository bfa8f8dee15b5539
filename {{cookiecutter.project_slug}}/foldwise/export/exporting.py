"""Export of a run as a folder with one ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldwise.errors import Refusal
from foldwise.export.graph import write_graph
from foldwise.export.subject import OnnxPredictor, Subject, example_batch, open_subject
from foldwise.files import check_new, new_folder
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA

TOLERANCE = 1e-4  # of a probability; of a number, relative to it if above 1
NAME = "model.onnx"


class Exported(NamedTuple):
    """The written folder, and the largest difference of the float graph from torch."""

    folder: Path
    difference: float
    notes: list[str]


def export_run(
    run: Path, out: Path, folds: Sequence[str] = ("0",), oof: str = "oof", decision: str | None = None
) -> Exported:
    """Write `out`, a new folder."""
    require()
    check_new(out)
    subject = open_subject(run, folds, oof, decision)
    with new_folder(out) as folder:
        write_graph(folder / NAME, subject.graph(), example_batch(subject), subject.fields, subject.describe())
        difference = check_equal(subject, folder / NAME)
    return Exported(out, difference, subject.notes)


def require() -> None:
    """Refuse without the packages of the extra `export`."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{error.name} is not installed: uv pip install 'onnx>=1.18' 'onnxscript>=0.5' 'onnxruntime>=1.22'"
        ) from error


def open_session(path: Path, threads: int = 0) -> Any:
    """A session on the CPU; 0 threads: all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_equal(subject: Subject, path: Path) -> float:
    """The largest difference of a graph from torch over the held-out items; refuse more than TOLERANCE."""
    source = subject.truth.items.source
    torch_values = Predictor(subject.models, TTA(), "cpu").predict(source, subject.held)
    onnx_values = OnnxPredictor(subject, open_session(path)).predict(source, subject.held)
    worst = 0.0
    for (number, ours), (_, its) in zip(torch_values, onnx_values, strict=True):
        for name, values in subject.combine(ours).items():
            found = its[name][0, 0]
            difference = np.abs(found - values) / np.maximum(np.abs(values), 1)
            worst = max(worst, float(difference.max()))
            if not difference.max() <= TOLERANCE:
                id = subject.truth.table.ids[subject.held[number]]
                raise Refusal(
                    f"the graph differs from torch by {difference.max():.2g} on {id}, and at most {TOLERANCE:g} is "
                    "allowed, so it was not written: an operation of the network is exported differently"
                )
    return worst
