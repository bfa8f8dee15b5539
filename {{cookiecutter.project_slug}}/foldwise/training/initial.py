"""Initial weights from another run (`init=runs/<name>`): fold k starts from a model that has not seen fold k.

With the same folds, each model starts from the one of the same name in the other run: fold 2 from fold 2, a full fit
from the full fit. With other folds, the other run's table must share no id, no group and no picture with this one; then
every model starts from the other run's full fit, if it has one, else from the one of the same name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.config import read_config
from foldwise.data.holdout import Holdout, fold_name
from foldwise.data.prepare import Prepared
from foldwise.data.problems import some
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.files import equal_files
from foldwise.inference.spec import SPEC
from foldwise.shell import command, override
from foldwise.training.identity import read_identity

if TYPE_CHECKING:
    from foldwise.models.network import Network


def check_initial(run: Path, prepared: Prepared, parts: Sequence[Holdout]) -> None:
    """Raise a Refusal if a model of `run` saw what is held out here, or if one is missing; all problems at once."""
    problems = []
    if read_identity(run)["content folds"] != prepared.folds_hash:
        problems = _shared(read_config(run)["data"], prepared.source)
        if problems:
            raise Refusal(
                f"init={run} was trained with other folds, on a table that shares with {prepared.source.path}\n"
                + "\n".join(f"  {problem}" for problem in problems)
                + "\nits models may have seen what is held out here: train it with the same folds"
            )
    for part in parts:
        try:
            find_initial(run, prepared.folds_hash, part)
        except Refusal as error:
            problems.append(str(error))
    if problems:
        raise Refusal("\n".join(dict.fromkeys(problems)))


def find_initial(run: Path, folds_hash: str, part: Holdout) -> Path:
    """Find the model folder that a model of this run starts from; raise a Refusal if there is none, or several."""
    name = part.name
    if read_identity(run)["content folds"] != folds_hash and (run / fold_name() / "model" / SPEC).is_file():
        name = fold_name()
    if any((run / name / "snapshots").glob(f"*/{SPEC}")):
        average = command("python", "tools/average_weights.py", run)
        raise Refusal(f"init={run} has snapshots in {name}: average them with {average}")
    folder = run / name / "model"
    if not (folder / SPEC).is_file():
        chosen = "full" if name == fold_name() else part.fold if len(part.folds) == 1 else "pairs"
        train = command("python", "train.py", override("run", str(run)), f"fold={chosen}")
        raise Refusal(f"init={run} has no model in {name}: train it with {train}")
    return folder


def load_initial(net: "Network", folder: Path) -> None:
    """Load the weights of a model folder into a network on the CPU.

    Tensors of the head that are missing or have another shape keep their new values; a tensor before the head must fit.
    """
    from foldwise.inference.weights import load_state

    state, needed = load_state(folder), net.state_dict()
    fitting = {name: state[name] for name in needed if name in state and state[name].shape == needed[name].shape}
    new = [*net.head(), *(net.get_submodule(name) for name in net.auxiliary)]
    free = {id(tensor) for module in new for tensor in [*module.parameters(), *module.buffers()]}
    own = dict([*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)])
    unfit = [name for name in needed if name not in fitting and id(own[name]) not in free]
    if unfit:
        raise Refusal(
            f"{folder} does not fit this network: {len(unfit)} of {len(needed)} tensors before its head are missing "
            f"or have another shape, first {unfit[0]}; init needs the same model"
        )
    net.load_state_dict(fitting, strict=False)


def _shared(data: dict[str, Any], table: Table) -> list[str]:
    """Ids, groups and pictures that a run's table has in common with another table."""
    columns = Columns.from_config(data["columns"])
    other = read_table(data["table"], table.task, data["root"], columns, table.classes, has_target=False)
    problems = []
    for column in ("id", "group"):
        if column in other.frame and column in table.frame:
            common = sorted(set(other.frame[column].astype(str)) & set(table.frame[column].astype(str)))
            problems += [f"{len(common):,} {column}s: {some(common, 3)}"] if common else []
    paths = [frame.root / image for frame in (other, table) for image in frame.frame["image"].unique()]
    border = other.frame["image"].nunique()
    same = [found for found in equal_files(paths) if found[0] < border <= found[-1]]
    problems += [f"{len(same):,} pictures: {some([str(paths[found[-1]]) for found in same], 3)}"] if same else []
    return problems
