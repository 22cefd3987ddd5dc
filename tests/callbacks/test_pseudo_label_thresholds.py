from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from callbacks.pseudo_label_thresholds import authors_median, exact_median, histograms, thresholds
from loss.plop import teacher_score
from tests.conftest import TINY
from tests.vectors import cases, variants


def test_golden_histograms_and_thresholds(golden):
    """Infinite ones and those that are no number too."""
    for case in cases(golden("plop_median_thresholds")):
        kind, bins = str(case["mode"]), int(case["n_bins"])
        n_seen = int(case["num_old"]) + int(case["num_new"])
        counts = 0
        for logits, labels in zip(case["logits_old"], case["labels"], strict=True):
            logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
            value = teacher_score(logits, n_seen, kind)
            counts = counts + histograms(value, logits.argmax(1), labels == 0, n_seen, bins)
        assert torch.equal(counts, torch.from_numpy(case["histogram"]))
        got = thresholds(counts, float(case["base_threshold"]), kind, exact=False)
        np.testing.assert_allclose(got.numpy(), case["thresholds"], rtol=1e-6)


def test_golden_thresholds_of_bacs(golden):
    """A class that the teacher never predicts has the least threshold, which the file does not name."""
    data = golden("bacs_plop_median")
    n_seen, counts = int(data["nb_current"]), 0
    for i in variants(data, r"logits_old_(\d+)"):
        logits, labels = torch.from_numpy(data[f"logits_old_{i}"]), torch.from_numpy(data[f"labels_{i}"])
        value = teacher_score(logits, n_seen, "entropy")
        np.testing.assert_allclose(value * data["max_entropy"], data[f"entropy_{i}"], rtol=1e-4, atol=1e-6)
        counts = counts + histograms(value, logits.argmax(1), labels == 0, n_seen, data["histogram"].shape[1])
    assert torch.equal(counts, torch.from_numpy(data["histogram"]))
    for exact, name in ((False, "thresholds_ref"), (True, "thresholds_exact_not_reference")):
        least = float(data[name].min())
        np.testing.assert_allclose(thresholds(counts, least, "entropy", exact).numpy(), data[name], rtol=1e-6)


def test_the_authors_median_is_one_where_it_lies_in_the_first_bin():
    counts = [10, 3, 2, 0]
    assert authors_median(counts) == exact_median(counts) == pytest.approx(7.5 / 10 / 4)
    assert authors_median([0, 0, 0, 9]) != exact_median([0, 0, 0, 9]) == pytest.approx(0.875)
    assert authors_median([0, 0]) == exact_median([0, 0]) == 0


@pytest.mark.slow
def test_a_run_measures_once_per_task_and_says_what(cli, tmp_path):
    result = cli(*TINY, "loss=plop", "training.task=4-2", "training.epochs=1", "hydra.run.dir=run")
    lines = [line for line in result.stdout.splitlines() if "pseudo-label thresholds: " in line]
    assert [len(line.partition(": ")[2].split(", ")) for line in lines] == [7, 9]
    assert len(json.loads((tmp_path / "run/results.json").read_text())["tasks"]) == 3
