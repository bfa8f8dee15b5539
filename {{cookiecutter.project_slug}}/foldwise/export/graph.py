"""A run's models as one ONNX graph: from the tensors of a batch to what prediction folders store."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldwise.data.batches import unit_range
from foldwise.data.fields import Field
from foldwise.errors import Refusal
from foldwise.export.metadata import DECISIONS, write_metadata
from foldwise.inference.weights import Model
from foldwise.models.network import Batch
from foldwise.predictions.decisions import rules
from foldwise.predictions.decisions.calibration import SMALLEST, Calibrator, Platt, Temperature
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.number_rules import Range, Rounded, Values
from foldwise.tasks.outputs import Output, activate

Feeds = dict[str, np.ndarray]  # of a session, by the names of its inputs
MAIN = {True: "probabilities", False: "values"}  # by Task.probabilities
OPSET = 18
CARRIED = (rules.Rule, Values, rules.Argmax, rules.AdjustedArgmax, rules.FixedThreshold, rules.OneThreshold,
           rules.ClassThresholds, Range, Rounded)  # fmt: skip


class Graph(nn.Module):
    """Networks of one or several folds: normalised, activated, calibrated, averaged, and decided.

    Args:
        members: fold of each model; the snapshots of a fold are averaged first.
        decision: calibration and rule; None: neither.
    """

    def __init__(self, models: Sequence[Model], members: Sequence[int], decision: Decision | None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(model.network for model in models)
        self.specs, self.members, self.decision = [model.spec for model in models], list(members), decision
        self.outputs = models[0].spec.outputs

    @property
    def names(self) -> list[str]:
        """Names of the outputs of `forward`."""
        names = [graph_name(output) for output in self.outputs]
        return [*names, DECISIONS] if self.decides else names

    @property
    def decides(self) -> bool:
        return self.decision is not None and type(self.decision.rule) not in (rules.Rule, Values)

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        by_fold: dict[int, list[dict[str, Tensor]]] = {}
        for fold, network, spec in zip(self.members, self.networks, self.specs, strict=True):
            by_fold.setdefault(fold, []).append(activate(network(batch), spec.outputs))
        values = []
        for output in self.outputs:
            folds = {fold: _mean([each[output.name] for each in of_fold]) for fold, of_fold in by_fold.items()}
            if self.decision is not None and not output.name:
                calibrators = self.decision.calibrators
                folds = {f: _calibrate(calibrators.get(f, self.decision.common), v) for f, v in folds.items()}
            values.append(_mean(list(folds.values())))
        if self.decision is not None and self.decides:
            values.append(_decide(self.decision.rule, values[0]))
        return tuple(values)


def graph_name(output: Output) -> str:
    """Name in the graph: of the main output by its kind, of others their own."""
    if output.name:
        return output.name
    return "vectors" if output.meaning.kind == "vectors" else MAIN[output.meaning.probabilities]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)


def _calibrate(calibrator: Calibrator, p: Tensor) -> Tensor:
    """As the calibrator does in numpy, which works in float64."""
    if isinstance(calibrator, Temperature):
        return (p.clamp(min=SMALLEST).log() / calibrator.temperature).softmax(1)
    if isinstance(calibrator, Platt):
        p = p.clamp(SMALLEST, 1 - SMALLEST)
        return (_tensor(calibrator.slope) * (p.log() - (1 - p).log()) + _tensor(calibrator.offset)).sigmoid()
    return p


def _decide(rule: rules.Rule, values: Tensor) -> Tensor:
    """Answers (B, C), uint8, or numbers float32."""
    if isinstance(rule, Range):
        if isinstance(rule, Rounded):
            step = _tensor(rule.step)
            values = torch.where(step > 0, (values / step.clamp(min=1e-6)).round() * step, values)
        return values.clamp(_tensor(rule.low), _tensor(rule.high))
    if isinstance(rule, rules.Argmax):
        if isinstance(rule, rules.AdjustedArgmax):
            values = values / _tensor(rule.share**rule.strength)
        return (torch.arange(values.shape[1]) == values.argmax(1, keepdim=True)).to(torch.uint8)
    return (values >= torch.tensor(thresholds(rule, values.shape[1]))).to(torch.uint8)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def thresholds(rule: Any, classes: int) -> list[float] | None:
    """One threshold per class of a rule that has thresholds."""
    if isinstance(rule, rules.FixedThreshold):
        return [float(rule.threshold)] * classes
    return rule.thresholds.tolist() if isinstance(rule, rules.ClassThresholds) else None


def as_feeds(batch: Batch, session: Any) -> Feeds:
    """What a session takes of a batch, in its types."""
    feeds = {}
    for needed in session.get_inputs():
        value = batch[needed.name]
        feeds[needed.name] = (unit_range(value) if needed.type == "tensor(float)" else value).numpy()
    return feeds


def write_graph(
    path: Path, graph: Graph, batch: Batch, fields: Mapping[str, Field], described: Mapping[str, Any]
) -> None:
    """Write an ONNX file whose inputs have the batch's names; batch size and the length of stacks are free.

    Args:
        batch: an example with two or more items, and stacks of two or more pictures.
    """
    free = torch.export.Dim.DYNAMIC
    ragged = {name for name, field in fields.items() if field.ragged}
    shapes = {name: {0: free, 1: free} if name.removesuffix("_valid") in ragged else {0: free} for name in batch}
    with quiet():
        try:
            program = torch.onnx.export(
                graph.eval(), (), kwargs={"batch": batch}, dynamic_shapes={"batch": shapes}, opset_version=OPSET,
                output_names=graph.names, dynamo=True, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            name, cause = type(graph.networks[0].net).__name__, error.__cause__ or error
            raise Refusal(f"{name} cannot be exported as written (docs/extend.md#networks): {cause}") from error
    assert program is not None
    model = program.model
    for value in list(model.graph.inputs):
        value.name = str(value.name).removeprefix("batch_")
        if not value.uses():
            model.graph.inputs.remove(value)
    inputs = [
        {"name": value.name, "dtype": str(batch[str(value.name)].dtype).removeprefix("torch."),
         "axes": [None if axis in shapes[str(value.name)] else length
                  for axis, length in enumerate(batch[str(value.name)].shape)]}
        for value in model.graph.inputs
    ]  # fmt: skip
    model.metadata_props.update(write_metadata({"variant": "float", **described, "inputs": inputs}))
    program.save(str(path), external_data=False)


@contextmanager
def quiet() -> Any:
    """Keep the exporter's remarks on its own code from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
