from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from continual.learning.parameter_groups import check_factors, parameter_groups
from protocol.errors import ConfigError


def network() -> nn.Module:
    """encoder.0, encoder.1, head and classifier.heads.0, .1 and .10, each a weight and a bias."""
    made = nn.Module()
    made.encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    made.head = nn.Linear(2, 2)
    made.classifier = nn.Module()
    made.classifier.heads = nn.ModuleList(nn.Linear(2, 1) for _ in range(11))
    return made


PARTS = ("encoder", "encoder.0", "encoder.1.bias", "head", "classifier", "classifier.heads.1", "classifier.heads.10")


def settings_of(network, groups):
    """Factor of the learning rate and weight decay by the name of the parameter, each in one group."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    listed = [(names[id(p)], (g["lr"] / 0.5, g.get("weight_decay"))) for g in groups for p in g["params"]]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(PARTS), st.sampled_from([0.25, 2.0, 8.0])), st.sets(st.sampled_from(PARTS)))
def test_what_learns_has_the_factor_of_its_smallest_part(factors, frozen):
    made = network()
    for name, parameter in made.named_parameters():
        parameter.requires_grad = not any(f"{name}.".startswith(f"{part}.") for part in frozen)
    check_factors(made, factors, "training.lr_factors")
    found = settings_of(made, parameter_groups(made, 0.5, factors))
    assert set(found) == {name for name, p in made.named_parameters() if p.requires_grad}
    for name, (factor, decay) in found.items():
        around = [part for part in factors if name == part or name.startswith(f"{part}.")]
        assert factor == (factors[max(around, key=len)] if around else 1.0)
        assert decay is None  # the optimizer's own


def test_weight_decay_may_be_for_the_newest_layer_alone():
    made = network()
    newest = made.classifier.heads[10]
    groups = parameter_groups(made, 0.5, {"classifier": 2.0}, newest)
    found = settings_of(made, groups)
    assert {name: kind for name, kind in found.items() if kind[1] is None} == {
        "classifier.heads.10.weight": (2.0, None), "classifier.heads.10.bias": (2.0, None),
    }  # fmt: skip
    assert {decay for name, (_, decay) in found.items() if "heads.10" not in name} == {0.0}
    assert [group["name"] for group in groups] == ["rest", "classifier", "classifier/new"]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (
            {"body": 1.0},
            r"^training\.lr_factors\.body=1.0: body must be encoder, head or classifier, or a part of one of them$",
        ),
        ({"encodr": 0.1}, r"^training\.lr_factors\.encodr=0.1: encodr must be .* did you mean encoder\?$"),
        ({"encoder.2": 1.0}, r"encoder\.2 must be .* did you mean encoder\.\d\?$"),
        ({"head": 0}, r"^training\.lr_factors\.head=0 must be a number above 0$"),
        ({"head": "x"}, r"^training\.lr_factors\.head=x must be a number above 0$"),
    ],
)
def test_factors_that_cannot_be(factors, message):
    with pytest.raises(ConfigError, match=message):
        check_factors(network(), factors, "training.lr_factors")


def test_the_classifier_has_no_layer_yet_when_factors_are_checked():
    check_factors(network(), {"classifier.heads.99": 2.0}, "training.lr_factors_next")
