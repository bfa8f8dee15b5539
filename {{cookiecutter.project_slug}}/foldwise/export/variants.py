"""Smaller forms of a float graph: weights in half precision, and int8.

int8 is onnxruntime's static quantization, per channel, of the layers with weights and what lies between them. What
stays in float is found on training pictures: the layers are cut into STRETCHES in the order of the graph, each stretch
alone is quantized, and the mean change of the values is measured. Besides all in int8, there is a variant with the one
stretch that changes them most in float ("int8, 1/12 in float"), with three, and with six.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.export.graph import Feeds
from foldwise.export.metadata import KEY, open_session, read_metadata, write_metadata

STRETCHES, LEFT = 12, (0, 1, 3, 6)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = ("Add", "Clip", "Relu", "Concat", "GlobalAveragePool", "MaxPool", "Resize")
SMALL = 256  # weights of fewer numbers stay in float


def write_half(source: Path, target: Path) -> None:
    """Store weights in half precision; the graph casts them once, when it is loaded, and computes in float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.dtype == np.float32 and values.size >= SMALL and np.isfinite(half).all():
            casts.append(helper.make_node("Cast", [f"{weight.name}_half"], [weight.name], to=TensorProto.FLOAT))
            weight.CopyFrom(numpy_helper.from_array(half, f"{weight.name}_half"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _save(model, target, "half")


def write_int8(source: Path, folder: Path, feeds: Sequence[Feeds], judged: Sequence[Feeds]) -> dict[str, Path]:
    """Write the int8 variants into a folder; paths by name.

    Args:
        feeds: batches of training pictures for the ranges of the activations.
        judged: others, on which stretches are compared.
    """
    import onnx

    model = onnx.load(source)
    stretches = _stretches(model.graph)
    everything = [name for stretch in stretches for name in stretch]
    before = _values(source, judged)

    def quantize(names: Sequence[str], path: Path) -> None:
        _quantize(source, path, names, feeds, folder / "ranges.json")

    harm, trial = [], folder / "trial.onnx"
    for stretch in stretches if len(stretches) > 1 else ():
        quantize(stretch, trial)
        harm.append(float(np.abs(_values(trial, judged) - before).mean()))
    found = {}
    for left in [left for left in LEFT if left < len(stretches)]:
        floats = {name for number in np.argsort(harm)[::-1][:left] for name in stretches[number]}
        name = "int8" if not left else f"int8, {left}/{len(stretches)} in float"
        found[name] = folder / f"int8-{left}.onnx"
        quantize([node for node in everything if node not in floats], found[name])
        _save(onnx.load(found[name]), found[name], name)
    return found


def _stretches(graph: Any) -> list[list[str]]:
    """Names of the nodes to quantize: layers with weights, and what lies between two of them."""
    weights = {weight.name for weight in graph.initializer}
    layers = [node.op_type in WEIGHTED and not weights.isdisjoint(node.input) for node in graph.node]
    leading: set[str] = set()  # names of tensors that lead to a layer
    chosen = []
    for node, layer in zip(reversed(graph.node), reversed(layers), strict=True):
        if layer or not leading.isdisjoint(node.output):
            leading.update(node.input)
            if layer or node.op_type in BETWEEN:
                chosen.append((node.name, layer))
    order = np.cumsum([layer for _, layer in chosen[::-1]])  # what follows a layer belongs to it
    stretch = np.ceil(order * min(STRETCHES, order[-1]) / order[-1]).clip(1)
    return [[name for (name, _), s in zip(chosen[::-1], stretch, strict=True) if s == n] for n in np.unique(stretch)]


def _quantize(source: Path, target: Path, names: Sequence[str], feeds: Sequence[Feeds], ranges: Path) -> None:
    """Quantize these nodes; the ranges of the activations are measured once and kept."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(feeds)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.batches, None)

    logging.disable(logging.WARNING)  # it advises, through the root logger, to run what is of no use here
    try:
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*WEIGHTED, *BETWEEN],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(names),
            calibration_cache_path=ranges,
        )
    finally:
        logging.disable(logging.NOTSET)


def _values(path: Path, judged: Sequence[Feeds]) -> np.ndarray:
    """Values of the main output, flat."""
    session = open_session(path)
    name = session.get_outputs()[0].name
    return np.concatenate([session.run([name], feeds)[0].ravel() for feeds in judged])


def _save(model: Any, path: Path, variant: str) -> None:
    """Save a model; its metadata say which variant it is."""
    import onnx

    found = {each.key: each.value for each in model.metadata_props}
    described = {**read_metadata(found, path), "variant": variant}
    for each in model.metadata_props:
        if each.key == KEY:
            each.value = write_metadata(described)[KEY]
    onnx.save(model, path)
