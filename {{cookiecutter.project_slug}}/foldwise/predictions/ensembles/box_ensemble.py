"""Ensembles of boxes, fused by NMS or WBF, with weights, score floors and an IoU that suit the other folds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.files import write_json
from foldwise.predictions.boxes import Boxes, Fusion, boxes_frame, found_boxes, match, true_boxes
from foldwise.predictions.ensembles.blending import Blend, Fitted, Method, equal_weights
from foldwise.predictions.ensembles.map_ensemble import MAP_BLENDS, MapEnsemble, MapExamples
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, write_predictions
from foldwise.progress import Progress

IMAGES = 200  # of a fold, to fit on
IOUS = (0.4, 0.5, 0.6, 0.7, 0.8)
FLOORS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
FACTORS = (0.25, 0.5, 2.0, 4.0)  # of a source's weight
ROUNDS = 2  # of trying each setting


@dataclass(frozen=True)
class BoxExamples(MapExamples):
    """`score` of a fusion on some images of these folds."""

    score: Callable[[Fusion], float]


def fit_fusion(how: str, examples: BoxExamples) -> Fusion:
    """Change one setting at a time, starting from equal weights, as long as the score improves."""
    count = len(examples.probability)
    best = Fusion(how, tuple(equal_weights(count).tolist()), (0.0,) * count)
    sign = 1 if examples.metric.greater_is_better else -1
    most = sign * examples.score(best)
    for _ in range(ROUNDS):
        before = best
        for setting in range(2 * count + 1):
            for tried in _neighbours(best, setting):
                if (score := sign * examples.score(tried)) > most:
                    best, most = tried, score
        if best == before:
            break
    return best


def _neighbours(fusion: Fusion, setting: int) -> Iterator[Fusion]:
    """Fusions that differ in one setting: the IoU, a source's weight, or a source's floor."""
    source, is_floor = divmod(setting - 1, 2)
    if setting == 0:
        yield from (replace(fusion, iou=iou) for iou in IOUS)
    elif is_floor:
        for floor in FLOORS:
            yield replace(fusion, floors=(*fusion.floors[:source], floor, *fusion.floors[source + 1 :]))
    else:
        for factor in FACTORS:
            weights = fusion.weights
            weights[source] *= factor
            yield replace(fusion, shares=tuple((weights / weights.sum()).round(6).tolist()))


BOX_FUSIONS = (
    MAP_BLENDS[True][0],
    replace(MAP_BLENDS[True][1], title="mean (WBF of equal weights)"),
    Method("nms", "NMS", partial(fit_fusion, "nms")),
    Method("wbf", "WBF", partial(fit_fusion, "wbf")),
)


class BoxEnsemble(MapEnsemble):
    """Ensemble of boxes in memory; the values of a fold are the evidence of its images."""

    def __init__(self, sources: Sequence[Source], names: Sequence[str], truth: GroundTruth, progress: Progress) -> None:
        self.images: dict[int, list[tuple[Boxes, list[list[Boxes]]]]] = {}  # by fold: true boxes, and each source's
        self._known: dict[tuple[Fusion, int], np.ndarray] = {}
        super().__init__(sources, names, truth, progress)

    def examples(self, folds: Sequence[int]) -> MapExamples:
        def score(fusion: Fusion) -> float:
            return self.truth.metric.reduce(np.concatenate([self._of_some(fusion, fold) for fold in folds]))

        return BoxExamples(**vars(super().examples(folds)), score=score)

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        return [np.stack([self._evidence(_fusion(fitted), self.images[fold]) for fitted in each]) for each in methods]

    def write(self, method: Method, oof: Path, test: Path | None, header: Header) -> None:
        """As `MapEnsemble.write`, and `fusion.json`: the settings that suit the folds other than each."""
        super().write(method, oof, test, header)
        fitted = {f"fold{fold}": asdict(_fusion(self.fit(method, frozenset({fold})))) for fold in self.folds}
        write_json(oof.parent / "fusion.json", {"sources": self.names, **fitted})

    def _write(
        self, method: Method, folder: Path, header: Header, sources: Sequence[Predictions], ids: dict[int, list[str]]
    ) -> None:
        frames = []
        for fold, fold_ids in ids.items():
            fusion = _fusion(self.fit(method, frozenset({fold})))
            found = [found_boxes(each, fold) for each in sources]
            fused = [(id, fusion.predict([each[id] for each in found])) for id in fold_ids]
            member = {"fold": fold, "snapshot": "mean", "view": "mean"}
            frames.append(boxes_frame(fused, header.columns, member))
        write_predictions(folder, pd.concat(frames, ignore_index=True), header)

    def _measure(self, fold: int) -> MapExamples:
        table, found = self.truth.table, [found_boxes(each, fold) for each in self.oof]
        images = [(true_boxes(table, table.row_of[id]), [each[id] for each in found]) for id in self.ids[fold]]
        self.images[fold] = images
        alone = [_fusion(Blend(weights)) for weights in np.eye(len(self.names))]
        hits = [np.concatenate([_hit_scores(true, fusion.predict(each)) for true, each in images]) for fusion in alone]
        evidence = np.stack([self._evidence(fusion, images) for fusion in alone])
        return MapExamples(self.truth.metric, evidence, np.stack(hits)[:, :, None], np.ones((len(hits[0]), 1)))

    def _evidence(self, fusion: Fusion, images: Sequence[tuple[Boxes, list[list[Boxes]]]]) -> np.ndarray:
        """Evidence (N,) object of fused boxes."""
        each = (self.truth.metric.measure(true, fusion.predict(sources)) for true, sources in images)
        return np.fromiter(each, object, len(images))

    def _of_some(self, fusion: Fusion, fold: int) -> np.ndarray:
        """The same of at most `IMAGES` of a fold, measured once."""
        if (fusion, fold) not in self._known:
            images = self.images[fold]
            chosen = np.random.default_rng(0).permutation(len(images))[:IMAGES]
            self._known[fusion, fold] = self._evidence(fusion, [images[number] for number in chosen])
        return self._known[fusion, fold]


def _fusion(fitted: Any) -> Fusion:
    """Of a mean of sources: WBF with their weights."""
    if isinstance(fitted, Fusion):
        return fitted
    return Fusion("wbf", tuple(fitted.weights.tolist()), (0.0,) * len(fitted.weights))


def _hit_scores(true: Boxes, found: Boxes) -> np.ndarray:
    """Score of the match of each true box, 0 without one."""
    partner = match(true, found)
    return np.where(partner >= 0, np.append(found.score, 0)[partner], 0)
