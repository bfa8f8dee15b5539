"""Opening of an exported file, and what it says of itself: JSON under the key `foldwise` of the ONNX metadata.

schema       1
variant      float, half, or int8 and what of it is in float
run          name of the run, and `identity`, its hash
models       fold, snapshot and sha256 of each network in the graph; `folds` has the folds
task         of the main output, and `classes`, its columns
outputs      of the graph, in order: output (its name there), name (in the run, "" for the main one), task, kind,
             columns; `decisions` is not among them
rule         how `decisions` are made of the main output, or are to be made where the graph has none; thresholds:
             one per class, or null
temperature  by fold: a number T (softmax(log p / T)), or slope and offset per class (sigmoid(slope logit p +
             offset)); null: not calibrated. The graph applies it
size         (height, width) of the images
inputs       name, dtype and axes of the graph's inputs, as strings, numbers and null for a free axis
samples      how an item is read, as in model.json: reader, state, fields, exif, fit, scales, channels
notes        for who reads the file, such as of tiles; may be empty
"""

import json
from collections.abc import Mapping
from typing import Any

from foldwise.errors import Refusal

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra `export`
KEY, SCHEMA = "foldwise", 1
DECISIONS = "decisions"  # further output of a graph


def open_session(path: object, threads: int = 0) -> Any:
    """Open a file on the CPU; 0 threads: one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors only
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_metadata(described: Mapping[str, Any]) -> dict[str, str]:
    return {KEY: json.dumps({"schema": SCHEMA, **described}, ensure_ascii=False, allow_nan=False)}


def read_metadata(found: Mapping[str, str], path: object) -> dict[str, Any]:
    """Read `session.get_modelmeta().custom_metadata_map`; refuse another file, and a newer schema."""
    if KEY not in found:
        raise Refusal(f"{path} was not written by export.py: it has no metadata {KEY!r}")
    described = json.loads(found[KEY])
    if described["schema"] != SCHEMA:
        raise Refusal(f"{path} has the schema {described['schema']}; this code reads {SCHEMA}: export it again")
    return described
