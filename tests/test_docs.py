"""Documents that must not age: generated pages, and links."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, Render
from generated_docs import PAGES

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str, render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path)
    assert (repository / "docs" / name).read_text() == PAGES[name](repository), "run make docs"


def check_links(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), f"{document}: no {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_the_template(document: Path) -> None:
    check_links(document)


def test_links_of_a_rendering(render: Render, tmp_path: Path) -> None:
    for document in render(tmp_path).rglob("*.md"):
        check_links(document)


def test_readmes_stay_short(render: Render, tmp_path: Path) -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
    assert len((render(tmp_path) / "README.md").read_text().splitlines()) <= 120
