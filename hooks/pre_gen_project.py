"""Refuse answers that would give a broken repository: every problem at once, a sentence each, before any file.

cookiecutter renders this file before it runs it. The answers arrive as JSON inside a raw string: JSON escapes every
quotation mark and backslash of an answer, and a raw string keeps those escapes, so that no answer can end the string.
cookiecutter makes the folder of the repository before this runs. So that a slug such as ../up makes none elsewhere,
`__slug` in cookiecutter.json keeps the answer and puts another name into its place, until it is refused here.
Standard library only.
"""

import itertools
import json
import keyword
import re
import sys

# Which metrics a task has; the first is what "auto" stands for. tests/test_hooks.py compares it with the code.
METRICS = {
    "multiclass": ["accuracy", "log_loss", "macro_f1", "roc_auc", "mean_average_precision", "quadratic_kappa"],
    "multilabel": ["f_beta", "log_loss", "macro_f1", "roc_auc", "mean_average_precision"],
    "regression": ["rmse", "mae", "rmsle", "r2", "mape", "pearson", "spearman", "quadratic_kappa"],
    "segmentation": ["mean_iou", "dice"],
}

# Names that Windows refuses for a folder, that the repository's own code has, or that would make the project
# a dependency of itself.
RESERVED = {
    *("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))),
    *("configs", "data", "foldwise", "runs", "solution", "test", "tests"),
    *("albumentations", "cv2", "huggingface-hub", "hydra", "hydra-core", "imagecodecs", "joblib", "lightning"),
    *("matplotlib", "numpy", "omegaconf"),
    *("opencv-python-headless", "pandas", "pillow", "pyarrow", "pytest", "pytorch-lightning", "pyyaml", "rich"),
    *("safetensors", "scikit-learn", "scipy", "segmentation-models-pytorch", "sklearn", "tensorboard"),
    *("simplejpeg", "threadpoolctl", "tifffile", "timm", "torch", "torchvision", "tqdm", "wandb", "yaml"),
}

# `$`, braces and the backtick mean something to Hydra, Jinja and a shell; quotation marks and backslashes to YAML.
FORBIDDEN_IN_TEXT = '"\\`${}'
FORBIDDEN_IN_NAME = FORBIDDEN_IN_TEXT + "/;|&<>*?!#~^%"


def quoted(answer: str) -> str:
    """The answer on one line of ASCII, as it may be shown on any terminal."""
    return json.dumps(answer)


def clean_text(text: str, forbidden: str) -> str:
    """`text` on one line, without the forbidden characters."""
    kept = (" " if not c.isprintable() else "'" if c == '"' else c for c in text if c == '"' or c not in forbidden)
    return " ".join("".join(kept).split())


def clean_slug(slug: str) -> str:
    """The nearest slug that is accepted."""
    words = [word for word in re.split(r"[^a-z0-9]+", slug.lower()) if word]
    numbers = list(itertools.takewhile(str.isdigit, words))
    name = "-".join(words[len(numbers) :] + numbers)  # "2024-plants" reads well the other way round
    if name[:1].isdigit():
        name = f"competition-{name}"
    if not name:
        return "my-competition"
    return f"{name}-solution" if is_reserved(name) else name


def is_reserved(slug: str) -> bool:
    name = slug.lower()
    return name.replace("_", "-") in RESERVED or keyword.iskeyword(name)


def check_slug(slug: str) -> str | None:
    suggestion = f"try {quoted(clean_slug(slug))}"
    if not slug:
        return f"project_slug is empty; {suggestion}."
    if not slug.isascii():
        return f"project_slug {quoted(slug)} has letters outside ASCII; {suggestion}."
    if "/" in slug or "\\" in slug or ".." in slug:
        return f"project_slug {quoted(slug)} is a path and not the name of a folder; {suggestion}."
    if slug[0] in "-_." or slug[0].isdigit():
        return f"project_slug {quoted(slug)} starts with {quoted(slug[0])} and not with a letter; {suggestion}."
    if not re.fullmatch(r"[a-z0-9_-]*[a-z0-9]", slug):
        return (
            f"project_slug {quoted(slug)} has other characters than small letters, digits and dashes,"
            f" or ends with a dash; {suggestion}."
        )
    if is_reserved(slug):
        return f"project_slug {quoted(slug)} is a reserved name or a package that the code uses; {suggestion}."
    return None


def check_text(key: str, text: str, forbidden: str, suggestion: str | None = None) -> str | None:
    suggestion = suggestion or f"try {quoted(clean_text(text, forbidden))}"
    if not text.isprintable():
        return f"{key} {quoted(text)} has a line break or another control character; {suggestion}."
    found = [c for c in forbidden if c in text]
    if found:
        return f"{key} {quoted(text)} has characters that it may not have ({' '.join(found)}); {suggestion}."
    return None


def check_name(name: str) -> str | None:
    ascii_name = clean_text(name.encode("ascii", "ignore").decode(), FORBIDDEN_IN_NAME).lstrip("- ")
    suggestion = f"try {quoted(ascii_name or 'My Competition')}"
    if not name.strip():
        return f"project_name is empty; {suggestion}."
    if not name.isascii():
        return f"project_name {quoted(name)} has letters outside ASCII; {suggestion}."
    if name[0] == "-":
        return f"project_name {quoted(name)} starts with a dash; {suggestion}."
    return check_text("project_name", name, FORBIDDEN_IN_NAME, suggestion)


def whole_number(text: str) -> int | None:
    """The number that `text` spells in plain ASCII digits, or None."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def check_image_size(text: str) -> str | None:
    size = whole_number(text)
    if size is None or size <= 0:
        return f"image_size {quoted(text)} is not a whole number above 0; try 224."
    if size % 32 or str(size) != text:
        nearest = max(1, round(size / 32)) * 32
        return f"image_size {quoted(text)} is not divisible by 32, as most networks need; try {nearest}."
    return None


def check_folds(text: str) -> str | None:
    folds = whole_number(text)
    if folds is None or folds < 2 or str(folds) != text:
        return f"folds {quoted(text)} is not a whole number of at least 2; try 5."
    return None


def check_metric(task: str, metric: str) -> str | None:
    if metric == "auto" or metric in METRICS[task]:
        return None
    usual, *others = METRICS[task]
    return f"metric {quoted(metric)} is not for {task}; try {quoted(usual)}, or one of {', '.join(others)}."


def problems(answers: dict[str, str]) -> list[str]:
    """A sentence for each answer that is refused."""
    found = [
        check_name(answers["project_name"]),
        check_slug(answers["project_slug"]),
        check_text("description", answers["description"], FORBIDDEN_IN_TEXT),
        check_text("author_name", answers["author_name"], FORBIDDEN_IN_TEXT),
        check_image_size(str(answers["image_size"])),
        check_folds(str(answers["folds"])),
        check_metric(answers["task"], answers["metric"]),
    ]
    return [sentence for sentence in found if sentence]


if __name__ == "__main__":
    answers = json.loads(r"""{{ cookiecutter | jsonify }}""")
    refused = problems({**answers, "project_slug": answers["__slug"]})
    if refused:
        sys.exit("\n".join(["", "These answers cannot be used:", *(f"  - {sentence}" for sentence in refused), ""]))
