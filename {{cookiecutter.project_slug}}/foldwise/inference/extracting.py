"""Computes stored features (`foldwise.data.features`) in blocks of rows.

Every process, of this command and of the same command on other machines, claims the next block, writes its rows and
marks it as done. A kill costs the blocks in work, and the values do not depend on who computes them: batches never
cross a block. The process that finds all blocks done writes features.json; a folder without it is unfinished.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from foldwise import FORMAT_VERSION
from foldwise.code.syntax import hash_text
from foldwise.data.batches import Packed, collate, pack_sample, start_worker, to_device
from foldwise.data.features import ENCODER, NONE, check_reader, describe_reading, image_bytes, picture_reader
from foldwise.data.images import image_hw
from foldwise.data.prepare import check_test_table, prepare, scan_alike
from foldwise.data.reading import Reader, fit_sample
from foldwise.data.samples import Rows, TableItems
from foldwise.errors import ProcessFailed, Refusal
from foldwise.files import sha256_file
from foldwise.inference.device import choose_devices, keep_freed_memory
from foldwise.inference.feature_folder import Choices, Work, complete, open_work, write_block
from foldwise.locks import lock
from foldwise.models.features import Encoder
from foldwise.models.networks import choose_normalization
from foldwise.processes.exits import describe_exit, how_to_resume
from foldwise.processes.group import Group, Rank
from foldwise.processes.server import start_server
from foldwise.progress import progress_bar, stepping
from foldwise.tasks.views import SYMMETRIES, View

BLOCK = 512  # rows
VIEWS = {NONE: "identity", "flip": "hflip"} | {name: name for name in SYMMETRIES if name not in ("identity", "hflip")}
PRELOAD = ("torch", "timm", "foldwise.inference.extracting")
POLL_SECONDS = 1.0


def extract(config: Mapping[str, Any], alias: str | None, choices: Choices, command: Sequence[str]) -> bool:
    """Compute the features of the training table and the test table; call again to resume.

    Args:
        config: resolved.
        command: what makes these features, for messages.

    Returns:
        False if other commands are still computing blocks: the last one completes the folder.
    """
    console, data = Console(highlight=False, markup=False), {**config["data"], "features": None}
    prepared = prepare({**config, "data": data}, alias)
    given, scans = [TableItems.of(prepared.source, prepared.samples)], [prepared.scan]
    if data["test_table"] and Path(data["test_table"]).exists():
        given.append(TableItems.of(check_test_table(data, prepared)[0], prepared.samples))
        scans.append(scan_alike(given[1].source, data, prepared.samples, prepared.statistics, False))
    for items in given:
        check_reader(items)
    tables = [TableItems.of(items.source, picture_reader(prepared.samples)) for items in given]
    rows = pd.concat(
        items.table.frame[["id", "image"]].assign(bytes=items.table.frame["image"].map(image_bytes(one, scan)))
        for items, one, scan in zip(tables, given, scans, strict=True)
    )
    encoder, described = _build_encoder(config, choices, prepared.image)
    weights = config["model"]["weights"]
    record = {
        "format_version": FORMAT_VERSION,
        "encoder": described,
        "weights": {"file": weights, "sha256": weights and sha256_file(Path(weights))},
        "reading": describe_reading(data, tables[0], prepared.statistics),
        "tables": {str(items.source.path): len(items.items) for items in tables},
        "rows": hash_text(rows.to_csv(index=False)),
        "rows_of_a_block": BLOCK,
        "views": list(choices.views),
        "dtype": choices.dtype,
        "command": list(command),
    }
    scales = {name: image["scale"] for name, image in prepared.statistics["images"].items()}
    readers = [Reader(each.samples, Rows(each.source, each.samples), each.items, {}, scales) for each in tables]
    work = Work(choices, record, readers)
    own = choices.out.with_name(f".{choices.out.name}.lock")
    with lock(own):  # several commands may start at once
        finished = open_work(work, encoder.net, rows, console)
    if not finished:
        _compute(work, choose_devices(choices.device, choices.devices), console)
        with lock(own):
            return complete(work)
    return True


def _build_encoder(
    config: Mapping[str, Any], choices: Choices, image: Mapping[str, Any]
) -> tuple[Encoder, dict[str, Any]]:
    """The network with its weights; its arguments, with the widths of its stages."""
    model, data, channels = config["model"], config["data"], image["channels"]
    if model["library"] != "timm":
        raise Refusal(f"features are of timm's networks, and model.library is {model['library']}: choose another model")
    if not model["weights"] and not model["pretrained"]:
        raise Refusal("the network would have random weights: set model.weights=<file> or model.pretrained=true")
    mean, std = choose_normalization(data["normalize"], image, model)
    described = {
        "name": model["name"],
        "options": model.get("options") or {},
        "stages": choices.stages if isinstance(choices.stages, str) else list(choices.stages),
        "pool": choices.pool,
        "mean": list(mean),
        "std": list(std),
    }
    height, width = image_hw(data["image_size"])
    try:
        encoder = Encoder(**described, channels=channels, weights=model["weights"], pretrained=model["pretrained"])
        with torch.inference_mode():
            parts = encoder.eval().parts(torch.zeros(1, channels, height, width))
    except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise Refusal(
            f"{model['name']} does not give the stages {choices.stages} of images of {height} x {width} ({error}): "
            "correct --stages or data.image_size"
        ) from error
    return encoder, described | {"widths": [part.shape[1] for part in parts]}


def _compute(work: Work, devices: Sequence[str], console: Console) -> None:
    """Compute the remaining blocks, with a process for each device; with one device, in this process."""
    total, code = len(work.blocks()), None
    with progress_bar("features", console) as progress:
        if len(devices) == 1:
            step = stepping(progress, "blocks of rows", total, total - len(work.rest()))
            for _ in compute_blocks(work, devices[0]):
                step()
            return
        context = start_server(PRELOAD)
        with Group(context, _compute_share, (work, devices), len(devices)) as group:
            while code is None:
                wait(group.sentinels, POLL_SECONDS)
                code = group.poll()
                progress("blocks of rows", total - len(work.rest()), total)
    if code:
        raise ProcessFailed(f"a process {describe_exit(code)}\n{how_to_resume(code)}", code)


def _compute_share(work: Work, devices: Sequence[str], rank: Rank) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.world_size))
    if devices[rank.index].startswith("cuda"):
        torch.cuda.set_device(devices[rank.index])  # otherwise a plain "cuda" takes memory on the first GPU
    for _ in compute_blocks(work, devices[rank.index]):
        pass


def compute_blocks(work: Work, device: str) -> Iterator[range]:
    """Compute blocks that nobody else has claimed, until none is left; yields those that are written."""
    choices = work.choices
    if device == "cpu":
        keep_freed_memory()
    described = {name: value for name, value in work.record["encoder"].items() if name != "widths"}
    encoder = Encoder(**described, channels=work.record["reading"]["the number of channels"])
    encoder.net.load_state_dict(load_file(choices.out / ENCODER))
    encoder.eval().to(device)
    claims: list[tuple[range, TextIO]] = []
    dataset = _Images(work)
    loader = DataLoader(
        dataset,
        batch_sampler=_claimed_batches(work, claims),  # drawn in this process
        num_workers=choices.workers,
        collate_fn=partial(collate, fields=work.readers[0].fields),
        pin_memory=device.startswith("cuda"),
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    field = next(iter(work.readers[0].fields))
    found: dict[str, list[np.ndarray]] = {view: [] for view in choices.views}
    for packed in loader:
        images = to_device(packed, torch.device(device))[field]
        with torch.inference_mode():
            for view, parts in found.items():
                parts.append(encoder(View(VIEWS[view]).forward(images)).cpu().numpy())
        block, claim = claims[0]
        if sum(map(len, found[NONE])) == len(block):
            with claim:
                write_block(work, block, {view: np.concatenate(parts) for view, parts in found.items()})
            del claims[0]
            found = {view: [] for view in choices.views}
            yield block


class _Images(Dataset[Packed]):
    """The images of all tables by row, as the network gets them."""

    def __init__(self, work: Work) -> None:
        self.readers = work.readers
        self.size, self.fit = (work.record["reading"][name] for name in ("data.image_size", "data.fit"))

    def __getitem__(self, row: int) -> Packed:
        for reader in self.readers:
            if row < len(reader.items):
                break
            row -= len(reader.items)
        return pack_sample(fit_sample(reader.read(row), reader.fields, self.size, self.fit), reader.fields)


def _claimed_batches(work: Work, claims: list[tuple[range, TextIO]]) -> Iterator[list[int]]:
    """The rows of each batch of the blocks that this process can claim; claims are appended, and stay locked."""
    size = work.choices.batch_size
    for block in work.blocks():
        mark = work.mark(block)
        if mark.exists():
            continue
        try:
            claim = lock(mark.with_suffix(".lock"), wait=False)
        except Refusal:  # another process computes it
            continue
        if mark.exists() or work.finished:
            claim.close()
            continue
        claims.append((block, claim))
        for first in range(block.start, block.stop, size):
            yield list(range(first, min(first + size, block.stop)))
