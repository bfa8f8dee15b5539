"""evaluate.py of several runs: what changed between them, beside what it brought."""

import json

from tiny import tiny_config, train_scored


def test_a_change_stands_beside_the_difference_of_the_scores(data, tmp_path, command):
    runs = [
        train_scored(tiny_config(data, "multiclass", f"optimizer.lr={rate}", "epochs=1"), tmp_path)
        for rate in (0.001, 0.02)
    ]
    scores = [json.loads((run / "metrics.json").read_text())["overall"] for run in runs]
    environment = json.loads((runs[1] / "environment.json").read_text())
    environment["created"]["packages"]["torch"] = "1.0"
    (runs[1] / "environment.json").write_text(json.dumps(environment))
    code, said, _ = command("evaluate.py", *runs, "--resamples", 100)
    assert code == 0 and f"{runs[0].name} -> {runs[1].name}: 2 changes" in said
    assert "cannot be attributed to one of them" in said
    assert "optimizer.lr: 0.001 -> 0.02" in said and "package torch:" in said and "-> 1.0" in said
    assert f"{scores[0]:.4f}" in said and f"{scores[1]:.4f}" in said and f"{scores[1] - scores[0]:+.4f}" in said
    # The other way round, everything turns.
    code, said, _ = command("evaluate.py", *runs[::-1], "--resamples", 100)
    assert "optimizer.lr: 0.02 -> 0.001" in said and f"{scores[0] - scores[1]:+.4f}" in said
    # The next command names another run of the same folds, and no run of other ones.
    assert f"python evaluate.py {runs[0]} {runs[1]}\n" in command("evaluate.py", runs[1], "--resamples", 100)[1]
    sidecar = runs[0] / "oof" / "predictions.json"
    whole = sidecar.read_text()
    sidecar.write_text(json.dumps(json.loads(whole) | {"folds_hash": "of the sample"}))
    assert f"python evaluate.py <another run> {runs[1]}\n" in command("evaluate.py", runs[1], "--resamples", 100)[1]
    sidecar.write_text(whole)
    # Sources that are no runs have no record of what they were made from.
    (runs[1] / "identity.json").unlink()
    code, said, _ = command("evaluate.py", *runs, "--resamples", 100)
    assert code == 0 and "->" not in said and f"{scores[1] - scores[0]:+.4f}" in said
