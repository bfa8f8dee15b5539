"""Writing of a bundle: weights, code, description, notebook and manifest."""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldwise.bundle.contents import copy_spec, copy_weights, find_imports, needed_code, needed_library, targets_of
from foldwise.bundle.host import MB, WHEELS, describe_sizes, installed_versions, write_manifest
from foldwise.bundle.passes import ENGINES
from foldwise.bundle.sources import RunSource, choose_post_processing, open_first, open_presence, open_sources
from foldwise.bundle.spec import SPEC, BundledModel, BundledRun, BundleSpec, to_plain
from foldwise.bundle.wheels import download_wheels
from foldwise.code.runs import FOLDER as CODE_FOLDER
from foldwise.code.source import write_code
from foldwise.data.holdout import fold_name
from foldwise.errors import Note, Refusal
from foldwise.files import check_new, new_folder, write_json
from foldwise.inference.spec import read_spec
from foldwise.predictions.decisions.deciding import Chosen
from foldwise.predictions.decisions.material import choose_layout
from foldwise.predictions.decisions.sample import read_sample
from foldwise.predictions.ensembles.stack import Stacks
from foldwise.predictions.finder import Finder
from foldwise.predictions.ground_truth import read_ground_truth

CODE = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("infer.py")
# Import decoders only when they meet a file, too late to report a missing package.
READERS = ("decoding.py", "jpeg.py", "png.py", "tiff.py")


class Built(NamedTuple):
    """What was written, and how its post-processing was chosen.

    Attributes:
        sizes: bytes by file.
        table: to rehearse with.
    """

    spec: BundleSpec
    chosen: Chosen
    sizes: dict[str, int]
    table: Path


def build_bundle(
    sources: Sequence[Path],
    out: Path,
    oof: str = "oof",
    half: bool = False,
    budget_mb: float | None = None,
    decision: str | None = None,
    exclusive: Sequence[Sequence[str]] | None = None,
    sums: Sequence[Sequence[str]] = (),
    sample: Path | None = None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    host_packages: Path | None = None,
    presence: Path | None = None,
    runtime: str = "torch",
) -> Built:
    """Write a bundle as a new folder, completely or not at all.

    Args:
        sources: runs, further outputs of runs (`<run>/outputs/<name>`), or one ensemble. If tools/crop.py found the
            boxes of their table, the run of masks that it names comes with them.
        oof: out-of-fold predictions that determine post-processing, views, their mean and tiles.
        decision, exclusive, sums, presence, sample, kind, options: as in `submit.make_submission`.
        host_packages: `pip freeze` of the host; wheels of missing packages are added.
        runtime: of the networks, one of `passes.ENGINES`.
    """
    check_new(out)
    opened = open_sources(sources, oof)
    truth = read_ground_truth(sources[0])
    if truth.task.kind == "vectors":
        raise Refusal("a bundle of retrieval would need all training images' vectors: predict with predict.py instead")
    sample_table = None if sample is None else read_sample(sample)
    layout, notes = choose_layout(truth, sample_table, kind, options)
    for note in notes:
        warnings.warn(note, Note, stacklevel=2)
    head = None if presence is None else open_presence(opened, presence, truth)
    chosen = choose_post_processing(opened, truth, decision, exclusive, sums, head)
    score = chosen.outcome.overall
    first = open_first(opened.runs)
    every = [*opened.runs, *([first[0]] if first else [])]
    names = [source.run.folder.resolve().name for source in every]
    unique = [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
    runs = [_describe_run(name, source) for name, source in zip(unique, every, strict=True)]
    if onnx := runtime == "onnx":
        from foldwise.bundle.onnx_models import check_exportable, write_network

        check_exportable(every)
    members = [(source, key) for source in every for key in source.snapshots]
    models = [source.run.models[key] for source, key in members]
    specs = [read_spec(model) for model in models]
    codes = [needed_code(model, each, onnx) for model, each in zip(models, specs, strict=True)]
    targets = {f"{ENGINES[runtime]}:Engine", *(target for each in specs for target in targets_of(each, onnx))}
    imports = find_imports(SCRIPT, CODE, READERS, targets, filter(None, codes))
    needs = sorted(set(imports.needs).union(*map(needed_library, [] if onnx else specs)))
    spec = BundleSpec(
        task=truth.task.name,
        classes=list(truth.table.classes),
        runs=runs[: len(opened.runs)],
        blend=opened.blend,
        tiles=opened.runs[0].tiles,
        columns=_columns(truth.config["data"]),
        fallback=truth.task.fallback(truth.table.trained_target, len(truth.table.classes)),
        decision=chosen.decision,
        layout=layout,
        presence=head if getattr(chosen.decision, "presence", 0) else None,
        metric=truth.metric.name,
        score=float(score) if np.isfinite(score) else None,
        half=half,
        needs=needs,
        versions=installed_versions(needs),
        reduction=truth.table.reduction,
        stacks=None if opened.stacked is None else Stacks.load(opened.stacked),
        first=_describe_first(runs[-1], *first, half, runtime) if first else None,
        runtime=runtime,
    )
    with new_folder(out) as folder:
        bundled = [folder / model.folder for run in runs for model in run.models]
        for (source, key), model, target, code in zip(members, models, bundled, codes, strict=True):
            target.mkdir(parents=True)
            if onnx:
                write_network(source, key, target, half)
            else:
                copy_weights(model, target, half)
            copy_spec(model, target, code)
            if code is not None:
                write_code(code, folder / CODE_FOLDER / code.hash)
        for path in imports.files:
            copy = folder / path.relative_to(CODE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        shutil.copyfile(SCRIPT, folder / SCRIPT.name)
        if host_packages is not None:
            download_wheels(needs, host_packages, folder / WHEELS)
        write_json(folder / SPEC, to_plain(replace(spec, stacks=None)))
        if spec.stacks is not None:
            spec.stacks.save(folder)
        write_notebook(folder, out.resolve().name)
        sizes = write_manifest(folder)
        total = sum(sizes.values()) / MB
        if budget_mb is not None and total > budget_mb:
            raise Refusal(
                f"the bundle has {total:.1f} MB, more than --budget-mb {budget_mb:g}:\n{describe_sizes(sizes)}\n"
                "make it smaller with --half, fewer runs, or an ensemble made with --use greedy"
            )
    return Built(spec, chosen, sizes, Path((first[0] if first else opened.runs[0]).run.data["table"]))


def _describe_run(name: str, source: RunSource) -> BundledRun:
    tta = source.oof.header.tta
    return BundledRun(
        name=name,
        source=os.path.relpath(source.run.folder),  # relative, so that no folder of this machine is uploaded
        output=source.output.name,
        views=tta["views"],
        mean=tta["mean"],
        models=[
            BundledModel(fold=fold, snapshot=number, folder=f"models/{name}/{fold_name(fold)}/{snapshot}")
            for (fold, snapshot), number in source.snapshots.items()
        ],
        weights=source.weights,
        columns=len(source.output.columns) if source.feature else None,
        feature=source.feature,
    )


def _describe_first(run: BundledRun, source: RunSource, finder: Finder, half: bool, runtime: str) -> BundleSpec:
    main = source.run.spec.main
    return BundleSpec(
        task=main.task,
        classes=list(main.columns),
        runs=[run],
        blend="arithmetic",
        tiles=source.tiles,
        columns=_columns(source.run.data),
        fallback=np.zeros(len(main.columns)),
        decision=finder,
        layout=None,
        metric="",
        score=None,
        half=half,
        needs=(),
        versions={},
        runtime=runtime,
    )


def _columns(data: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: data["columns"][name] for name in ("id", "image", "unit", "group")}


def write_notebook(bundle: Path, name: str) -> None:
    """Write `notebook.ipynb`: one cell that runs infer.py, with data sets in /kaggle/input/<name>."""
    install = f"!pip install --quiet --no-index --no-deps {{BUNDLE}}/{WHEELS}/*.whl\n"
    source = [
        f'BUNDLE, DATA = "/kaggle/input/{name}", "/kaggle/input/competition"  # the uploaded bundle, the data\n',
        *([install] if (bundle / WHEELS).is_dir() else []),
        "!python {BUNDLE}/infer.py --test {DATA}/test.csv --images {DATA}/test_images \\\n",
        "    --sample-submission {DATA}/sample_submission.csv --out /kaggle/working --time-limit 8h",
    ]
    cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "id": "infer", "metadata": {}, "outputs": []}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [{**cell, "source": source}], "metadata": {"kernelspec": kernel}}
    write_json(bundle / "notebook.ipynb", {**notebook, "nbformat": 4, "nbformat_minor": 5})
