"""The first items of each phase, augmented and mixed, with their targets, as the network gets them."""

import torch

from foldwise.data.batches import collate, to_device
from foldwise.data.sampling import SampleKey
from foldwise.preflight.subject import Subject
from foldwise.reporting.figures import color_of, shorten, to_png
from foldwise.reporting.pictures import COLUMNS, MOST_NAMES, describe_target, displayable, gallery, paint

PHASES = 4  # at most
EPOCHS = 2  # draws of each phase


def draw_sheet(subject: Subject) -> bytes | None:
    """PNG with a row for each draw of a phase; None if there are no images."""
    images = [name for name, field in subject.dataset.fields.items() if field.kind == "image"]
    if not images:
        return None
    output, ignored = subject.outputs[0], subject.config["data"]["ignore_index"]
    pictures, titles = [], []
    torch.manual_seed(subject.config["seed"])
    for number, phase in enumerate(subject.training.module.schedule.phases[:PHASES]):
        for repeat in range(EPOCHS):
            samples = [subject.dataset[SampleKey(item, number, repeat)] for item in subject.items[:COLUMNS]]
            mix = subject.training.module.mixes[phase.name]
            batch = mix(to_device(collate(samples, subject.dataset.fields), torch.device("cpu")))
            for row in range(len(samples)):
                image = batch[images[0]][row]
                image = image[0] if image.ndim == 4 else image  # the first of a stack
                picture = displayable(image.permute(1, 2, 0).numpy())
                target = batch[output.target][row].numpy()
                title = f"{phase.name}: {subject.prepared.table.ids[subject.items[row]]}"
                if output.meaning.kind == "maps":
                    picture = paint(picture, target, len(output.columns), ignored)
                else:
                    title += f"\n{describe_target(output.columns, target, output.meaning)}"
                pictures.append(picture)
                titles.append(title)
    names = output.columns[:MOST_NAMES] if output.meaning.kind == "maps" else ()
    legend = [(shorten(name), color_of(number)) for number, name in enumerate(names)]
    return to_png(gallery(pictures, titles, legend))
