"""Optimizers by name: no weight decay on norms and biases, layer-wise learning rates."""

import difflib
from typing import Any

from torch.optim import Optimizer

from foldwise.errors import Refusal
from foldwise.models.network import Network
from foldwise.models.normalized import Normalized


def scale_lr(lr: float, batch_size: int, reference: int | None) -> float:
    """Scale `lr` linearly from batches of `reference` images to `batch_size`; None: unchanged.

    The linear rule is for SGD (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.1); with Adam, the square
    root of the ratio is more usual (https://arxiv.org/abs/2205.10287).
    """
    if reference is None:
        return lr
    if type(reference) is not int or reference < 1:
        raise Refusal(
            f"lr_batch_size is {reference!r}; it must be null or the batch size (in images) that optimizer.lr is for"
        )
    return lr * batch_size / reference


def build_optimizer(
    net: Network | Normalized,
    opt: str,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    **options: Any,
) -> Optimizer:
    """Build any optimizer of timm or torch over all parameters of `net`, frozen ones included.

    Args:
        opt: timm's name: sgd (with Nesterov), adam, adamw, lamb, ...
        lr: of the head.
        weight_decay: not applied to norms, biases and what the network exempts.
        layer_decay: lr factor from each layer to the one before, in (0, 1]; None: the same lr everywhere.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    name, known = opt.lower().removeprefix("lookahead_"), [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or ["sgd", "adam", "adamw"]
        raise Refusal(f"unknown optimizer {opt!r}; correct optimizer.opt, for example: {', '.join(close)}")
    try:
        return create_optimizer_v2(parameter_groups(net, lr, weight_decay, layer_decay), opt, lr, **options)
    except (TypeError, ValueError) as error:  # unknown option or bad value
        raise Refusal(f"optimizer {opt} cannot be built with the options {options}: {error}") from error


def parameter_groups(
    net: Network | Normalized, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Group the parameters of `net` as {params, lr, weight_decay}, from the first layer to the last.

    `lr` includes the layer's factor; torch's schedulers would ignore timm's `lr_scale`.
    """
    net = net.net if isinstance(net, Normalized) else net
    factors = layer_factors(net, layer_decay) if layer_decay is not None else {}
    exempt = net.no_weight_decay()
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        factor = factors.get(name, 1.0)
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
        new: dict[str, Any] = {"params": [], "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((factor, decays), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_factors(net: Network, layer_decay: float) -> dict[str, float]:
    """Compute the lr factor of each parameter by name, layer_decay ** depth; parameters without an entry have 1."""
    if not 0 < layer_decay <= 1:
        raise Refusal(f"optimizer.layer_decay must be above 0 and at most 1, but is {layer_decay}")
    try:
        return {name: layer_decay**depth for name, depth in net.depths().items()}
    except Refusal as error:
        raise Refusal(f"{error}; or set optimizer.layer_decay=null") from error
