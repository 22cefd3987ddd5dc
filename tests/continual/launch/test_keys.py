"""What is said of the keys: in the terminal and on docs/keys.md."""

from __future__ import annotations

import pytest

from continual.launch.composition import check_what_is_composed
from continual.launch.keys import GROUPS, PAGE, PRESETS, help_about, page
from continual.launch.yaml_files import YamlFile
from protocol.errors import ConfigError
from tests.test_configurations import CONF, choices


@pytest.fixture(scope="module", autouse=True)
def hydra_with_our_loader():
    check_what_is_composed()


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_is_that_of_the_code_and_names_every_choice(text):
    assert PAGE.read_text() == text, "docs/keys.md is old: run python -m continual.launch.keys"
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.glob("**/*.yaml")}
    assert {folder for folder in folders if folder.split("/")[0] not in (".", "hydra", PRESETS)} == set(GROUPS)
    for group in (*GROUPS, PRESETS):
        assert all(f"{group}={choice}" in text for choice in choices(group))


def test_every_key_has_a_meaning(text):
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 500
    without = [row for row in rows if row.endswith("|  |")]
    assert not without, "say in conf/, by a comment behind the value, what the key means"


@pytest.mark.parametrize(
    ("topics", "parts"),
    [
        (
            ["training"],
            ["training=... is one of default, joint", "training.epochs=10\n    epochs of each task; allowed: a whole"],
        ),
        (["training.epochs"], ["training.epochs=10\n", "number of at least 1; dataset=shapes sets 10 instead of 30"]),
        (["training", "dataset=voc"], ["training.epochs=30\n    epochs of each task; allowed: a whole number of at"]),
        (["loss=ewc"], ["loss=ewc: EWC (", "with callbacks=ewc", "loss.average=all\n    what the mean divides by"]),
        (["network=deeplabv3_atrous"], ["network.norm=bn\n    normalisation and", "network.output_stride=16"]),
        (["dataset=voc"], ["dataset.root=???\n    folder VOC", "with network=deeplabv3", "training.lr_next=0.001\n"]),
        (["optimizer.lr"], ["optimizer.lr=0.004\n    learning rate of the first task"]),
        (["callbacks=replay", "scheduler=step"], ["callbacks.replay.capacity=300", "scheduler.every=5000"]),
        (["dataset/augmentation=scale_crop"], ["dataset.augmentation.crop.pad_image=${dataset.mean}\n    colour"]),
        (["experiment"], ["mib/voc_15-1_mib"]),
        (["hydra/launcher"], ["hydra/launcher=... is one of basic, joblib, parallel,"]),
        (
            ["hydra/launcher=parallel"],
            ["=parallel: Several jobs", "hydra.launcher.n_jobs=${jobs_at_once:}\n    one for"],
        ),
        (["callbacks.replay.capacity"], ["With callbacks=replay:\n", "callbacks.replay.capacity=300\n    images"]),
        (["loss.pod_weight"], ["With loss=plop:\nloss.pod_weight=0.01\n"]),
        (["deepinversion_images"], ["With callbacks=deep_inversion:\ndeepinversion_images=null\n"]),
        (["hydra.launcher.n_jobs"], ["With hydra/launcher=parallel:\nhydra.launcher.n_jobs="]),
        (["experiment=mib/voc"], ["of its methods:\n  python main.py experiment=mib/voc ", " loss=ilt\nTheir numbers"]),
        (["hydra.sweeper.max_batch_size"], ["max_batch_size=null\n    allowed: a whole number or null"]),
    ],
)
def test_help_on_a_group_a_choice_or_a_key(topics, parts):
    text = help_about(["--help", *topics])
    assert all(part in text for part in parts), text


def test_help_on_ones_own_choice(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text("# Mine\ndefaults: [mib]\nkd_weight: 3  # more\n")
    text = help_about(["--help", "loss=mine", "--config-dir", str(tmp_path)])
    assert "loss=mine: Mine" in text
    assert "ssul, mine\n" in text
    assert "loss.kd_weight=3\n    more; allowed: a number of at least 0\n" in text


def test_help_that_is_hydras_own_or_impossible():
    assert help_about(["--help", "--config-name", "config"]) is None
    with pytest.raises(ConfigError, match=r"lss is neither a group nor a key: did you mean loss\?"):
        help_about(["--help", "lss"])
    with pytest.raises(ConfigError, match=r"lr is neither a group nor a key: did you mean optimizer\.lr\?"):
        help_about(["--help", "lr"])
    with pytest.raises(ConfigError, match=r"loss\.weight is no setting"):
        help_about(["--help", "loss.weight"])


FILE = """\
# @package _global_
# Two
# lines

# --- a heading ---
defaults:
  - override /network: unet
  - /callbacks/x@callbacks
  - _self_
a:
  b: 1  # one,
        # continued
  # of nothing
  c: [1, 2]  # two
  d:
    - {x: '#'}
  e: '#'   # "#" is no comment
# --- another ---
f: null
"""


def test_comments_of_a_file(tmp_path):
    (tmp_path / "file.yaml").write_text(FILE)
    file = YamlFile.read(tmp_path, "file", "p.q")
    assert file.about == "Two lines"
    assert file.brings == ["network=unet", "callbacks=x"]
    assert [(e.key, e.written, e.comment) for e in file.entries] == [
        ("p.q.a.b", "1", "one, continued"), ("p.q.a.c", "[1, 2]", "two"), ("p.q.a.d", '[{"x": "#"}]', ""),
        ("p.q.a.e", "'#'", '"#" is no comment'), ("p.q.f", "null", ""),
    ]  # fmt: skip
    assert file.content == {"p": {"q": {"a": {"b": 1, "c": [1, 2], "d": [{"x": "#"}], "e": "#"}, "f": None}}}
