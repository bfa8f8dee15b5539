"""Networks of runs as ONNX files, for a bundle that its host runs without torch."""

from collections.abc import Sequence
from pathlib import Path

from foldwise.bundle.onnx_engine import NETWORK
from foldwise.bundle.sources import RunSource
from foldwise.errors import refuse_all
from foldwise.export.exporting import require_packages
from foldwise.export.graph import write_graph
from foldwise.export.subject import Subject, example_batch
from foldwise.export.variants import write_half
from foldwise.inference.weights import load_model
from foldwise.predictions.ground_truth import read_ground_truth
from foldwise.tasks.views import SYMMETRIES


def check_exportable(sources: Sequence[RunSource]) -> None:
    """Refuse what a graph of one input size does not do."""
    require_packages()
    problems = []
    for source in sources:
        height, width = source.run.spec.image_size
        views = source.oof.header.tta["views"]
        other = [name for name in views if name not in SYMMETRIES or (SYMMETRIES[name][0] and height != width)]
        if source.tiles or other:
            what = "tiles" if source.tiles else ", ".join(other)
            problems.append(
                f"{source.run.folder}: --runtime onnx has no {what}: bundle out-of-fold predictions of whole pictures "
                "and their flips (predict.py --oof --tta flips), or leave --runtime out"
            )
    refuse_all(problems)


def write_network(source: RunSource, key: tuple[int, str], target: Path, half: bool) -> None:
    """Write the network of a fold and snapshot: activated, neither calibrated nor decided."""
    model, truth = load_model(source.run.models[key]), read_ground_truth(source.run.folder)
    subject = Subject(source.run, truth, [key], [model], None, [0, 1], [], False, [])
    path = target / NETWORK
    float_path = path.with_suffix(".float") if half else path
    write_graph(float_path, subject.graph(), example_batch(subject), subject.fields, {"run": source.run.folder.name})
    if half:
        write_half(float_path, path)
        float_path.unlink()
