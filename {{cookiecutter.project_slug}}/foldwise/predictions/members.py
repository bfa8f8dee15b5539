"""Prediction rows (id, fold, snapshot, view, and the values) put together, averaged and counted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from foldwise.predictions.schema import MEMBER, Header, PredictionsError, raise_problems, some


def average_members(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Average over the members: id and the value columns, one row an id, in the order of their first rows."""
    return frame.groupby("id", sort=False)[list(columns)].mean().reset_index()


def merge(shards: Sequence[pd.DataFrame], ids: Sequence[str]) -> pd.DataFrame:
    """Put together the rows of several ranks or folds, in the order of `ids` whatever the order of the shards.

    Raises:
        PredictionsError: ids that are missing, that come twice for one (snapshot, view), or that nobody asked for.
    """
    frame = pd.concat(shards, ignore_index=True)
    place = {id: index for index, id in enumerate(ids)}
    if len(place) != len(ids):
        raise PredictionsError("merging predictions", ["the ids that are asked for are not unique"])
    found = set(frame["id"])
    problems = [
        f"{len(names)} ids {what}: {some(names)}"
        for what, names in (
            ("are missing", [id for id in ids if id not in found]),
            ("come more than once", sorted(set(frame["id"][frame.duplicated(["id", "snapshot", "view"])]))),
            ("are not asked for", sorted(found - place.keys())),
        )
        if names
    ]
    raise_problems("merging predictions", problems)
    order = frame["id"].map(place).rename("place")
    keys = pd.concat([order, frame[MEMBER]], axis=1).sort_values(["place", *MEMBER], kind="stable").index
    return frame.loc[keys].reset_index(drop=True)


def class_shares(frame: pd.DataFrame, header: Header) -> pd.Series:
    """The share of ids whose averaged answer is each class: the most probable, or if not exclusive from 0.5 on."""
    average = average_members(frame, header.columns)[header.columns].to_numpy()
    if not header.meaning.exclusive:
        return pd.Series((average >= 0.5).mean(axis=0), header.columns)
    counts = np.bincount(average.argmax(axis=1), minlength=len(header.columns))
    return pd.Series(counts / len(average), header.columns)
