"""Only what is a run of this version of the code is continued."""

import json

import pytest
from tiny import open_tiny, tiny_config

from foldwise import FORMAT_VERSION
from foldwise.errors import Refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": FORMAT_VERSION - 1, "identity": {}}, f"format version {FORMAT_VERSION - 1}.*train again"),
        ({"format_version": FORMAT_VERSION + 1, "identity": {}}, f"format version {FORMAT_VERSION + 1}.*train again"),
        ({"identity": {}}, "format version None"),
        ([], "format version None"),
        (None, "is not a run: it has no identity.json"),
    ],
)
def test_a_run_of_another_version_is_refused_by_hash_and_by_name(content, message, data, tmp_path):
    config = tiny_config(data, "multiclass")
    run = open_tiny(config, tmp_path)
    identity = run / "identity.json"
    identity.unlink() if content is None else identity.write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if content is not None:  # without its stamp, the folder is taken for a new run's
        with pytest.raises(Refusal, match=message):
            open_tiny(config, tmp_path)
    with pytest.raises(Refusal, match=message):
        open_tiny(config | {"run": str(run)}, tmp_path)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
