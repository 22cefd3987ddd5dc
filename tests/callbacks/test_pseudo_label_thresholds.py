from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from callbacks.pseudo_label_thresholds import authors_median, exact_median, histograms, thresholds
from loss.plop import uncertainty
from tests.conftest import TINY
from tests.vectors import variants

BACS_BASE_THRESHOLD = 0.001  # the files of BACS do not say it


@pytest.mark.parametrize("case", range(6))
def test_golden_histograms_and_thresholds(golden, case):
    """Infinite ones and those that are no number too."""
    data = {k.removeprefix(f"c{case}_"): v for k, v in golden("plop_median_thresholds").items() if k[:2] == f"c{case}"}
    kind, bins = str(data["mode"]), int(data["n_bins"])
    n_seen = int(data["num_old"]) + int(data["num_new"])
    counts = 0
    for logits, labels in zip(data["logits_old"], data["labels"], strict=True):
        logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
        value = uncertainty(logits, n_seen, kind)
        counts = counts + histograms(value, logits.argmax(1), labels == 0, n_seen, bins)
    assert torch.equal(counts, torch.from_numpy(data["histogram"]))
    got = thresholds(counts, float(data["base_threshold"]), kind, exact=False)
    np.testing.assert_allclose(got.numpy(), data["thresholds"], rtol=1e-6)


def test_golden_thresholds_of_bacs(golden):
    data = golden("bacs_plop_median")
    n_seen, counts = int(data["nb_current"]), 0
    for i in variants(data, r"logits_old_(\d+)"):
        logits, labels = torch.from_numpy(data[f"logits_old_{i}"]), torch.from_numpy(data[f"labels_{i}"])
        value = uncertainty(logits, n_seen, "entropy")
        counts = counts + histograms(value, logits.argmax(1), labels == 0, n_seen, data["histogram"].shape[1])
    assert torch.equal(counts, torch.from_numpy(data["histogram"]))
    for exact, name in ((False, "thresholds_ref"), (True, "thresholds_exact_not_reference")):
        got = thresholds(counts, BACS_BASE_THRESHOLD, "entropy", exact)
        np.testing.assert_allclose(got.numpy(), data[name], rtol=1e-6)


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
