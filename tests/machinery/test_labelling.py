"""Labelling by hand: lists, the page in a real browser, and what is taken of its answers."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pseudo_world import UNLABELLED, draw, make_run, write_world
from scipy.special import entr
from tiny import CLASSES, prepare_tiny, tiny_config, write_data

from foldwise.config import write_config
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.labelling import lists
from foldwise.labelling.answers import take_answers
from foldwise.labelling.lists import find_suspects, list_boxes, list_suspects, list_uncertain, spread
from foldwise.labelling.page import open_list, write_page
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


def in_chromium(page, script):
    """Run a script in a page; return what it leaves in the element `result`."""
    run = f"<pre id='result'></pre><script>setTimeout(() => {{ {script} }}, 300)</script></body>"
    changed = page.with_name("driven.html")
    changed.write_text(page.read_text().replace("</body>", run))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", str(changed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return html.unescape(re.search(r"<pre id=.result.>(.*?)</pre>", done.stdout, re.DOTALL)[1])


KEYS = "const key = (k) => dispatchEvent(new KeyboardEvent('keydown', {key: k}));"
SHOW = "document.getElementById('result').textContent = answersCsv();"


# lists


def test_suspects_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    logits = 2.5 * np.eye(3)[truth] + rng.normal(size=(400, 3))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = rng.random(400) < 0.05
    labels = np.where(flipped, (truth + 1) % 3, truth)
    suspect, likely = find_suspects(labels, probability)
    threshold = [probability[labels == number, number].mean() for number in range(3)]
    for row in range(400):
        found = [number for number in range(3) if probability[row, number] >= threshold[number]]
        best = max(found, key=lambda number: probability[row, number], default=labels[row])
        assert suspect[row] == (probability[row, best] > probability[row, labels[row]])
        assert not suspect[row] or likely[row] == best
    assert flipped[suspect].mean() > 3 * flipped.mean()


def test_a_run_lists_its_suspect_labels(tmp_path):
    root = write_data(tmp_path / "world")
    frame = pd.read_csv(root / "train.csv").assign(part=[row % 2 for row in range(24)])
    frame.loc[[4, 9], "label"] = ["red", "green"]  # they are green and blue
    frame.to_csv(root / "train.csv", index=False)
    config = tiny_config(root, "multiclass", "data.columns.fold=part")
    prepared = prepare_tiny(config)
    write_config(root / "run", config)
    write_json(root / "run" / "identity.json", {})
    oof = pd.DataFrame(np.full((24, 3), 0.1), columns=CLASSES)
    for row in range(24):
        oof.loc[row, CLASSES[row % 3]] = 0.8 if row != 9 else 0.9
    oof[CLASSES] = oof[CLASSES].div(oof[CLASSES].sum(axis=1), axis=0)
    oof = oof.assign(id=prepared.table.ids, fold=frame["part"], snapshot="last", view="identity")
    header = Header(split="oof", task="multiclass", columns=CLASSES, folds_hash=prepared.folds_hash, created_by="x")
    write_predictions(root / "run" / "oof", oof, header)
    found = list_suspects(root / "run", tmp_path / "suspect.csv")
    assert found[["id", "label", "likely"]].to_numpy().tolist() == [["row9", "green", "blue"], ["row4", "red", "green"]]
    assert found["doubt"].tolist() == pytest.approx([0.8 / 1.1, 0.7], abs=1e-5)
    assert len(list_suspects(root / "run", tmp_path / "one.csv", 1)) == 1
    with pytest.raises(Refusal, match="not overwritten"):
        list_suspects(root / "run", tmp_path / "one.csv")


def test_spread_takes_the_farthest_from_all_that_are_chosen():
    vectors = np.random.default_rng(1).normal(size=(30, 3))
    vectors[11] = vectors[0]
    chosen = spread(vectors, 8)
    expected = [0]
    while len(expected) < 8:
        distance = [min(np.linalg.norm(vectors[row] - vectors[other]) for other in expected) for row in range(30)]
        expected.append(int(np.argmax(distance)))
    assert chosen == expected and 11 not in chosen
    assert sorted(spread(vectors[:4], 9)) == [0, 1, 2, 3]


def test_disagreement_is_the_entropy_that_runs_do_not_share(tmp_path):
    root = write_world(tmp_path / "world")
    same = draw("multiclass", 1)
    same[:, 2] = 1 / 3  # of the largest entropy, in which all agree
    runs = [make_run(root, "a", same), make_run(root, "b", same)]
    assert list_uncertain(runs, tmp_path / "same.csv", 8, disagreement=True)["disagreement"].max() < 1e-5
    other = same.copy()
    other[:, 5] = np.roll(same[:, 5], 1, axis=1) * [0.9, 0.9, 0.9] + [0.1, 0, 0]
    runs[1] = make_run(root, "c", other)
    found = list_uncertain(runs, tmp_path / "other.csv", 8, disagreement=True)
    assert found["id"][0] == f"row{UNLABELLED[5]}" and found["disagreement"][1] < 1e-5
    means = np.stack([same.mean(axis=0)[5], other.mean(axis=0)[5]])
    own, shared = entr(means).sum(axis=1).mean(), entr(means.mean(axis=0)).sum()
    assert found["disagreement"][0] == pytest.approx(shared - own, abs=1e-5)
    assert list_uncertain(runs, tmp_path / "entropy.csv", 8)["id"][0] == f"row{UNLABELLED[2]}"
    with pytest.raises(Refusal, match="two runs"):
        list_uncertain(runs[:1], tmp_path / "one.csv", 8, disagreement=True)


def test_diverse_ones_are_among_the_least_certain(tmp_path, monkeypatch):
    runs = [make_run(write_world(tmp_path / "world"), "a", draw("multiclass", 1))]
    most = list_uncertain(runs, tmp_path / "most.csv", 3)["id"].tolist()
    for pool, alike in ((10, False), (1, True)):
        monkeypatch.setattr(lists, "POOL", pool)
        diverse = list_uncertain(runs, tmp_path / f"diverse{pool}.csv", 3, diverse=True)["id"].tolist()
        assert diverse[0] == most[0] and len(diverse) == 3 and (set(diverse) == set(most)) == alike


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_margins_and_entropies_are_those_of_the_chosen_predictions(task, tmp_path):
    root, probability = write_world(tmp_path / "world"), draw(task, 2)
    run, other = make_run(root, "a", draw(task, 1), task), make_run(root, "b", probability, task)
    shutil.copytree(other / "predictions/test-none", run / "predictions/test-other")
    found = list_uncertain([run], tmp_path / "list.csv", 8, test="test-other").sort_values("id")
    mean = probability.mean(axis=0)
    if task == "multiclass":
        entropy, margin = entr(mean).sum(axis=1), np.sort(mean)[:, -1] - np.sort(mean)[:, -2]
    else:
        entropy, margin = (entr(mean) + entr(1 - mean)).mean(axis=1), np.abs(2 * mean - 1).min(axis=1)
    np.testing.assert_allclose(found[["entropy", "margin"]], np.stack([entropy, margin], axis=1), atol=1e-5)


def test_labelled_images_and_scenes_of_gold_rows_are_not_listed_again(tmp_path):
    root = write_world(tmp_path / "world")
    train = pd.read_csv(root / "train.csv", dtype=str).assign(sure=["1"] * 3 + ["0"] * 13)
    train.loc[5, ["id", "image"]] = ["row17", "images/17.png"]
    train.to_csv(root / "train.csv", index=False)
    test = pd.read_csv(root / "test.csv").assign(site=["s2", *"abcdefg"])  # that of a gold row
    test.to_csv(root / "test.csv", index=False)
    columns = ["data.columns.gold=sure", "data.columns.group=site", "data.columns.fold=null"]
    found = list_uncertain([make_run(root, "a", draw("multiclass", 1), overrides=columns)], tmp_path / "list.csv", 99)
    assert sorted(found["id"]) == [f"row{row}" for row in range(18, 24)]
    # new rows come with their group, and are refused where a column holds the folds
    config = tiny_config(root, "multiclass", *columns)
    (root / "answers.csv").write_text("id,label,seconds\nrow18,red,1\n")
    take_answers(open_list(tmp_path / "list.csv", config), root / "answers.csv", root / "train-2.csv")
    last = pd.read_csv(root / "train-2.csv", keep_default_na=False).iloc[-1]
    assert last[["id", "site", "label", "sure"]].tolist() == ["row18", "b", "red", ""]
    fixed = open_list(tmp_path / "list.csv", tiny_config(root, "multiclass", "data.columns.fold=part"))
    with pytest.raises(Refusal, match="1 answers are new rows, which have no fold in the column 'part'"):
        take_answers(fixed, root / "answers.csv", root / "train-3.csv")
    test[test["id"] == "row17"].to_csv(root / "test.csv", index=False)
    run = make_run(root, "b", draw("multiclass", 1)[:, 1:2], overrides=columns, rows=[17])
    with pytest.raises(Refusal, match="have a label, or belong to gold rows"):
        list_uncertain([run], tmp_path / "none.csv", 9)


def test_boxes_that_are_missing_come_first_then_those_of_images_with_several(tmp_path):
    frame = pd.DataFrame(
        {"id": list("abcdef"), "image": ["1", "2", "2", "3", "4", "5"], "x0": 1, "y0": 2, "x1": 3, "y1": 4}
    )
    frame = frame.astype(object)
    frame.loc[5, ["x0", "y0", "x1", "y1"]] = ""
    frame.to_csv(tmp_path / "found.csv", index=False)
    listed = list_boxes(tmp_path / "found.csv", tmp_path / "boxes.csv")
    assert listed[["id", "boxes"]].to_numpy().tolist() == [["f", 0], ["b", 2], ["c", 2]]
    assert list_boxes(tmp_path / "found.csv", tmp_path / "one.csv", 1)["id"].tolist() == ["f"]
    pd.DataFrame({"id": ["a"], "image": ["1"]}).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(Refusal, match="no column x0, y0, x1, y1"):
        list_boxes(tmp_path / "none.csv", tmp_path / "x.csv")


# the page


@pytest.fixture
def world(tmp_path):
    """16 labelled pictures, 8 unlabelled ones, and the configuration of their data."""
    root = write_world(tmp_path / "world")
    return root, tiny_config(root, "multiclass")


def listed(world, frame, task="multiclass", **data):
    root, config = world
    frame.to_csv(root / "list.csv", index=False)
    return open_list(root / "list.csv", config | {"task": task, "data": config["data"] | data})


def images(rows):
    return pd.DataFrame({"id": [f"row{row}" for row in rows], "image": [f"images/{row}.png" for row in rows]})


def test_a_page_holds_everything_and_names_cannot_break_out(world):
    root, _ = world
    frame = images([0, 20]).assign(**dict.fromkeys(CLASSES, 0.25), likely="</script><b>x")
    write_page(listed(world, frame), root / "page.html")
    text = (root / "page.html").read_text()
    assert "</script><b>" not in text and not re.search(r"(src|href)=.http", text)
    page = json.loads(re.search(r"const page = (.*);", text)[1])
    assert [item["labels"] for item in page["items"]] == [["blue"], []]
    assert page["items"][0]["note"] == "label now: blue; likely: </script><b>x"
    data = base64.b64decode(page["items"][1]["picture"].partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    stored = cv2.imread(str(root / "images/20.png"))
    np.testing.assert_allclose(shown.mean(axis=(0, 1)), stored.mean(axis=(0, 1)), atol=3)  # red is not blue
    with pytest.raises(Refusal, match="not overwritten"):
        write_page(listed(world, frame), root / "page.html")


@in_browser
def test_twenty_pictures_are_labelled_by_keys(world):
    root, _ = world
    write_page(listed(world, images(range(20))), root / "page.html")
    wanted = np.random.default_rng(3).integers(0, 3, 20)
    keys = [str(number + 1) for number in wanted]
    keys = [*keys[:5], "1", "u", " ", "ArrowLeft", *keys[5:]]  # one is undone, one is skipped and found again
    said = in_chromium(root / "page.html", f"{KEYS} {keys}.forEach(key); {SHOW}")
    answers = pd.read_csv(pd.io.common.StringIO(said))
    assert answers["id"].tolist() == [f"row{row}" for row in range(20)]
    assert answers["label"].tolist() == [CLASSES[number] for number in wanted]
    # the page is closed and opened again
    again = in_chromium(root / "page.html", SHOW)
    assert again == said
    (root / "answers.csv").write_text(said)
    taken = take_answers(listed(world, images(range(20))), root / "answers.csv", root / "train-2.csv")
    before, after = pd.read_csv(root / "train.csv"), pd.read_csv(root / "train-2.csv")
    assert after["label"].tolist() == answers["label"].tolist()
    assert after["id"].tolist() == answers["id"].tolist()
    pd.testing.assert_frame_equal(after[:16].drop(columns="label"), before.drop(columns="label"), check_dtype=False)
    assert taken.new == 4 and taken.changed == (before["label"] != answers["label"][:16]).sum()
    log = pd.read_csv(taken.log, keep_default_na=False)
    assert len(log) == taken.changed + 4 and (log["before"] != log["after"]).all()


@in_browser
def test_labels_are_switched_and_searched(world):
    names = [f"name {number:02d}" for number in range(30)]
    frame = images([0, 1]).assign(**{name: number / 30 for number, name in enumerate(names)})
    train = pd.read_csv(world[0] / "train.csv").assign(labels="name 03")
    train.to_csv(world[0] / "train.csv", index=False)
    write_page(listed(world, frame, "multilabel", classes=names, label_separator=","), world[0] / "page.html")
    script = """
      const search = document.getElementById("search");
      key("1");                                     // the most probable: name 29
      key("/"); search.value = "me 07"; key("Enter");
      key("/"); search.value = "03"; key("Enter");  // off
      key("Enter"); key("Enter");
    """
    said = in_chromium(world[0] / "page.html", KEYS + re.sub(r"//.*", "", script) + SHOW)
    answers = pd.read_csv(pd.io.common.StringIO(said))
    assert answers["labels"].tolist() == ["name 07,name 29", "name 03"]


@in_browser
def test_five_boxes_are_dragged(world):
    root, _ = world
    frame = images(range(16, 21)).assign(x0=4, y0=6, x1=20, y1=24)
    frame = frame.astype(object)
    frame.loc[2, ["x0", "y0", "x1", "y1"]] = ""
    write_page(listed(world, frame), root / "page.html")
    script = """
      const image = document.getElementById("image"), corner = (n) => document.querySelectorAll("#box i")[n];
      const at = (x, y) => { const r = image.getBoundingClientRect(), s = r.width / 32;
                             return {clientX: r.left + x * s, clientY: r.top + y * s, bubbles: true}; };
      const fire = (on, name, x, y) => on.dispatchEvent(new PointerEvent("pointer" + name, at(x, y)));
      const drag = (on, from, to) => {
        fire(on, "down", ...from); fire(window, "move", ...to); fire(window, "up", ...to);
      };
      drag(corner(0), [4, 6], [8, 9]); key("Enter");
      drag(corner(3), [20, 24], [99, 30]); key("Enter");
      drag(image, [10, 12], [3, 2]); key("Enter");
      key("x");
      drag(document.getElementById("box"), [10, 10], [12, 8]); key("Enter");
    """
    answers = in_chromium(root / "page.html", f"{KEYS} {script} {SHOW}")
    (root / "answers.csv").write_text(answers)
    take_answers(listed(world, frame), root / "answers.csv", root / "list-2.csv")
    boxes = pd.read_csv(root / "list-2.csv")[["x0", "y0", "x1", "y1"]]
    expected = [[8, 9, 20, 24], [4, 6, 32, 30], [3, 2, 10, 12], [np.nan] * 4, [6, 4, 22, 22]]
    np.testing.assert_allclose(boxes, expected, atol=0.11)


def test_boxes_of_the_training_table_are_corrected_there(world):
    root, config = world
    train = pd.read_csv(root / "train.csv").assign(x0="", y0="", x1="", y1="")
    train.to_csv(root / "train.csv", index=False)
    boxes = open_list(root / "train.csv", config)
    boxes.frame.head(2).to_csv(root / "boxes.csv", index=False)
    (root / "answers.csv").write_text("id,x0,y0,x1,y1,seconds\nrow1,1,2,3,4,1\n")
    taken = take_answers(open_list(root / "boxes.csv", config), root / "answers.csv", root / "train-2.csv")
    after = pd.read_csv(root / "train-2.csv")
    assert taken.changed == 1 and len(after) == 16
    assert after.loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [1, 2, 3, 4] and after["x0"].isna().sum() == 15


def test_masks_are_accepted_or_rejected(world):
    root, _ = world
    frame = images([16, 17, 18]).assign(mask=[f"masks/{row}.png" for row in (16, 17, 18)])
    masks = listed(world, frame, "segmentation", classes=["background", *CLASSES])
    write_page(masks, root / "page.html")
    answers = pd.DataFrame({"id": ["row18", "row16"], "mask": ["accept", "reject"], "seconds": [1.5, 2]})
    answers.to_csv(root / "answers.csv", index=False)
    taken = take_answers(masks, root / "answers.csv", root / "train-2.csv")
    assert (taken.new, taken.rejected, taken.changed) == (1, 1, 0)
    after = pd.read_csv(root / "train-2.csv")
    assert after[["id", "image", "mask"]].iloc[-1].tolist() == ["row18", "images/18.png", "masks/18.png"]


def test_labels_in_another_order_are_the_same(world):
    root, _ = world
    table = pd.read_csv(root / "train.csv", keep_default_na=False).assign(labels="blue green")
    table.to_csv(root / "train.csv", index=False)
    answers = pd.DataFrame({"id": ["row0", "row1"], "labels": ["green blue", "green"], "seconds": [1.5, 2.5]})
    answers.to_csv(root / "answers.csv", index=False)
    labels = listed(world, images([0, 1]), "multilabel", label_separator=" ")
    taken = take_answers(labels, root / "answers.csv", root / "train-2.csv")
    assert (taken.same, taken.changed, taken.new) == (1, 1, 0)
    log = pd.read_csv(taken.log)
    expected = [["row1", "labels", "blue green", "green", 2.5, "answers.csv"]]
    assert log[["id", "column", "before", "after", "seconds", "answers"]].to_numpy().tolist() == expected


def test_corrected_boxes_are_still_those_of_their_models(world):
    root, _ = world
    boxes = images([16]).assign(x0=4, y0=6, x1=20, y1=24)
    write_json(root / "list.json", {"created_by": "tools/crop.py", "run": "runs/x"})
    pd.DataFrame({"id": ["row16"], "x0": [5], "y0": [6], "x1": [20], "y1": [24], "seconds": [1]}).to_csv(
        root / "answers.csv", index=False
    )
    take_answers(listed(world, boxes), root / "answers.csv", root / "list-2.csv")
    assert read_json(root / "list-2.json") == read_json(root / "list.json") | {"corrected_by": "answers.csv"}


# what is refused


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("id,label,seconds\nrow0,car,1\n", "car is none of blue, green, red"),
        ("id,label,seconds\nrow0,,1\n", "an empty answer is none of"),
        (
            "id,label,seconds\nrow9,red,1\nrow0,red,1\nrow0,blue,1\n",
            "(?s)1 ids are not in .*row9.*1 ids come more than once",
        ),
        ("id,labels,seconds\nrow0,red,1\n", "have id, label, seconds"),
        ("id,label,seconds\n", "has no answers yet"),
    ],
)
def test_wrong_answers_are_named(world, answers, message):
    (world[0] / "answers.csv").write_text(answers)
    with pytest.raises(Refusal, match=message):
        take_answers(listed(world, images([0, 1])), world[0] / "answers.csv", world[0] / "train-2.csv")
    assert not list(world[0].glob("train-2*"))


def test_wrong_lists_are_named(world):
    with pytest.raises(Refusal, match="no column image"):
        listed(world, images([0]).drop(columns="image"))
    with pytest.raises(Refusal, match="ids more than once"):
        listed(world, images([0, 0]))
    outside = listed(world, images([0]).assign(image="../../x.png"))
    with pytest.raises(Refusal, match="not under"):
        write_page(outside, world[0] / "page.html")
    with pytest.raises(Refusal, match="no columns mask or x0"):
        listed(world, images([0]), "regression")


def test_the_command(world, command, tmp_path):
    root, _ = world
    runs = [make_run(root, name, draw("multiclass", seed)) for name, seed in (("a", 1), ("b", 2))]
    for step, arguments in {"uncertain": [runs[0], "--most", 5, "--diverse"], "disagree": [*runs, "--most", 5]}.items():
        code, said, error = command("tools/label.py", step, *arguments, "--out", tmp_path / f"{step}.csv")
        assert (code, error) == (0, "") and "label.py make" in said
        assert len(pd.read_csv(tmp_path / f"{step}.csv")) == 5
    code, _, error = command("tools/label.py", "suspect", runs[0], "--out", tmp_path / "suspect.csv")
    assert (code, error) == (0, "")  # the same probability everywhere
    assert not len(pd.read_csv(tmp_path / "suspect.csv"))
    assert command("tools/label.py", "disagree", runs[0], "--out", tmp_path / "x.csv")[0] == 2
    config = Path("configs/data/labelled.yaml")
    config.write_text(f"defaults: [competition, _self_]\nname: labelled\nroot: {root}\ntable: {root}/train.csv\n")
    try:
        words = [tmp_path / "uncertain.csv", "--data", "labelled", "--out", tmp_path / "page.html"]
        code, said, error = command("tools/label.py", "make", *words)
    finally:
        config.unlink()
    assert (code, error) == (0, "") and said.strip().endswith(f"--out {root}/train-2.csv")
