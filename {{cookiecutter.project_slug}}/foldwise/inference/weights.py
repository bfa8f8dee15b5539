"""Saving and loading of model folders: `model.safetensors` and `model.json` (`foldwise.inference.spec`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foldwise.code.build import resolve_strict
from foldwise.code.runs import find_code
from foldwise.data.features import FIELD, FeatureSet, StoredFeatures
from foldwise.data.samples import Samples
from foldwise.data.table import Table
from foldwise.data.units import Units
from foldwise.errors import Refusal
from foldwise.files import sha256_file, write_atomic, write_json
from foldwise.inference.items import build_samples
from foldwise.inference.spec import SPEC, WEIGHTS, ModelError, ModelSpec, raise_problems, read_spec
from foldwise.models.network import Network
from foldwise.models.normalized import Normalized


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    network: Normalized
    samples: Samples
    spec: ModelSpec


def on_features(model: Model, sets: Sequence[FeatureSet], table: Table) -> Model:
    """A model that reads the stored features of a table's images."""
    samples = {**model.spec.samples, FIELD: [one.digest for one in sets]}  # part of the key of its input
    return replace(model, samples=StoredFeatures(model.samples, sets, table), spec=replace(model.spec, samples=samples))


def find_models(fold: Path) -> dict[str, Path]:
    """Find the model folders of a fold by snapshot name; `last` if it took no snapshots."""
    snapshots = sorted((fold / "snapshots").glob(f"*/{SPEC}"))
    if snapshots:
        return {path.parent.name: path.parent for path in snapshots}
    return {"last": fold / "model"} if (fold / "model" / SPEC).is_file() else {}


def save_model(folder: Path, network: Normalized, spec: ModelSpec) -> None:
    """Write a model folder without auxiliary submodules; refuse NaN and infinite weights.

    Weights come first; loading refuses new weights next to an older `model.json`.
    """
    spec.plain()
    state = network.net.lasting_state()
    state = {name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in state.items()}
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} tensors have NaN or infinite values, first {bad[0]}: the training diverged"
        )
    # safetensors refuses tensors that share memory (tied layers) or are not contiguous.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with write_atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / SPEC, replace(spec, sha256=sha256_file(folder / WEIGHTS)).plain())


def load_model(folder: Path) -> Model:
    """Build the network of a model folder and load its weights; on the CPU, in eval mode, offline."""
    folder = Path(folder)
    spec, state = read_spec(folder), load_state(folder)
    alias = find_code(folder, spec.code)
    with torch.random.fork_rng(devices=[]):  # initialising weights must not advance the caller's generator
        kind = resolve_strict(spec.network["_target_"], alias, Network)
        try:
            net = kind(**_arguments(spec.network))
        except (Refusal, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ModelError(f"{folder / SPEC}: the network cannot be built ({error})") from error
    net.drop_auxiliary()
    raise_problems(folder / WEIGHTS, _state_problems(state, net.state_dict()))
    net.load_state_dict(state)
    return Model(normalize(net, spec).eval(), build_samples(spec, alias), spec)


def with_frames(model: Model, sets: int) -> Model:
    """Let a model's reader read so many sets of evenly spaced pictures of an item, for views of one set each."""
    if sets == 1:
        return model
    # The key differs from that of a reader of one set.
    spec = replace(model.spec, samples={**model.spec.samples, "sets": sets})
    return replace(model, samples=check_frames(model.samples).with_sets(sets), spec=spec)


def with_margin(model: Model, margin: float | None) -> Model:
    """Let a model's reader cut with another margin; None: its own."""
    if margin is None:
        return model
    check_margins(model.samples)
    settings = {**model.spec.samples, "crop": {**model.spec.samples["crop"], "margin": margin}}
    return replace(model, samples=model.samples.with_margin(margin), spec=replace(model.spec, samples=settings))


def check_margins(samples: Samples) -> None:
    """Refuse a reader without boxes."""
    if samples.crop is None:
        raise Refusal("tta.margins cuts boxes with several margins, and there is no samples.crop: choose another TTA")


def check_frames(samples: Samples) -> Units:
    """Refuse a reader that cannot read further sets of pictures."""
    if isinstance(samples, Units) and samples.frames is not None:
        return samples
    raise Refusal(
        "tta.frames predicts several sets of an item's pictures, so it is for the reader foldwise.data.units.Units "
        "with samples.frames: choose another TTA"
    )


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a model folder; ModelError if missing, damaged, or not those of `model.json`."""
    weights = Path(folder) / WEIGHTS
    digest = read_spec(folder).sha256
    if not weights.is_file():
        raise ModelError(f"{weights} is missing: the training of this fold did not finish, run train.py again")
    if sha256_file(weights) != digest:
        raise ModelError(f"{weights} does not match the hash in {SPEC}: copy the whole folder again")
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} cannot be read ({error})") from error


def normalize(net: Network, spec: ModelSpec) -> Normalized:
    """Add the normalisation of its images to a network."""
    return Normalized(net, {name: (values["mean"], values["std"]) for name, values in spec.images.items()})


def _arguments(described: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name != "_target_"}


def _state_problems(state: Mapping[str, torch.Tensor], needed: Mapping[str, torch.Tensor]) -> list[str]:
    shapes = [name for name in needed if name in state and state[name].shape != needed[name].shape]
    return [
        f"{len(names)} of {len(needed)} tensors {text}, first {names[0]}: {SPEC} belongs to another model"
        for names, text in (
            ([name for name in needed if name not in state], "of the network are missing from the file"),
            ([name for name in state if name not in needed], "of the file are not in the network"),
            (shapes, "have another shape than in the network"),
        )
        if names
    ]
