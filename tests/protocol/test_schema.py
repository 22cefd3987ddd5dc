"""What a signature says of settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import albumentations
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from protocol.errors import ConfigError
from protocol.numbers import Counts, Interval
from protocol.schema import Parameter, schema_of
from protocol.settings import SettingsOf
from protocol.words import UnknownKey

if TYPE_CHECKING:
    from nowhere import Absent


Kind = Literal["a", "b"]


def method(
    weight: float | torch.Tensor, steps: int = 3, kind: Kind | None = None, other: Absent = None, *args, **rest
) -> None:
    """Annotations are text here, one of which cannot be evaluated."""


@pytest.mark.parametrize(
    ("annotation", "value", "converted"),
    [
        (bool, True, True), (bool, 0, False), (bool, 1.0, True),
        (float, 10, 10.0), (float, "1e-3", 0.001), (int, 3.0, 3), (str, 50, "50"), (str | None, None, None),
        (float | torch.Tensor, 1, 1.0), (list[float], [1, 0.5], [1.0, 0.5]), (tuple[float, float], [1, 2], [1.0, 2.0]),
        (str | float, "erfnet", "erfnet"), (str | float, 1, 1.0), (Literal["auto"] | int, "auto", "auto"),
        (Literal[8, 16], 16.0, 16), (Interval, [1, 2], [1.0, 2.0]), (Counts, [1, 2.0], [1, 2]),
        (dict[str, float], {"a": 1}, {"a": 1.0}), (Any, [1, "x"], [1, "x"]), (torch.Tensor | None, None, None),
    ],
)  # fmt: skip
def test_a_value_gets_the_type_in_which_it_is_read(annotation, value, converted):
    assert repr(Parameter(annotation).convert("k", value)) == repr(converted)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (bool, "yes_please", "k=yes_please must be true or false"),
        (bool, "fasle", "k=fasle must be true or false: did you mean false?"),
        (bool, "no", "k=no must be true or false"),
        (bool | None, "1", "k='1' must be true, false or null"),
        (bool, 2, "k=2 must be true or false"),
        (int, True, "k=true must be a whole number"),
        (int, 2.5, "k=2.5 must be a whole number"),
        (float, False, "k=false must be a number"),
        (float, float("nan"), "k=NaN must be a number"),
        (float, float("inf"), "k=Infinity must be a number"),
        (float | torch.Tensor, "abc", "k=abc must be a number"),
        (str, ["a"], 'k=["a"] must be text'),
        (Annotated[int, Ge(1)] | None, 0, "k=0 must be a whole number of at least 1 or null"),
        (Annotated[float, Gt(0), Le(1)], 1.5, "k=1.5 must be a number above 0 and at most 1"),
        (Annotated[float, Ge(0), Lt(1)], 1, "k=1 must be a number of at least 0 and below 1"),
        (Literal["overlap", "disjoint"], "overlapp", "k=overlapp must be overlap or disjoint: did you mean overlap?"),
        (tuple[float, float, float], [0.5], "k=[0.5] must be a list of 3 numbers"),
        (tuple[float | torch.Tensor, float | torch.Tensor], 1, "k=1 must be a list of 2 numbers"),
        (list[str | int], 1.5, "k=1.5 must be a list of text or whole numbers"),
        (list[Literal["a", "b"]], 1, "k=1 must be a list of a or b"),
        (Literal[8, 16], 7.0, "k=7.0 must be 8 or 16"),
        (Interval, [2, 1], "k=[2, 1] must be a list of 2 numbers above 0, the lower one first"),
        (Counts, [], "k=[] must be a list of whole numbers of at least 1, not empty"),
        (torch.nn.Module, 1, "k=1 must be a mapping with _target_"),
        (torch.nn.Module | None, 1, "k=1 must be a mapping with _target_ or null"),
        (Path | None, [], "k=[] must be Path or null"),
        (list[list[str]] | None, 1, "k=1 must be a list of lists of text or null"),
        (dict[str, Annotated[float, Gt(0)]], {"a": 0}, 'k={"a": 0} must be a mapping to numbers above 0'),
        (Kind | bool | None, "c", "k=c must be a, b, true, false or null"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(annotation, value, message):
    with pytest.raises(ConfigError) as refused:
        Parameter(annotation).convert("k", value)
    assert str(refused.value) == message


def test_a_signature_is_a_schema():
    schema = schema_of(method)
    assert list(schema.parameters) == ["weight", "steps", "kind", "other"]
    assert schema.others
    assert [p.allowed for p in schema.parameters.values()] == ["a number", "a whole number", "a, b or null", "anything"]
    assert [name for name, p in schema.parameters.items() if p.is_required] == ["weight"]
    with pytest.raises(ConfigError, match=r"loss\.weight must be given: a number"):
        schema.check_complete("loss", ["steps"])


def test_what_has_no_signature_takes_anything():
    assert schema_of(type("Foreign", (), {"__signature__": "none"})).others == Parameter()


def test_names_of_ones_own_have_the_type_of_the_others():
    def layers(first: int, **others: torch.nn.Module | None) -> None:
        pass

    schema = schema_of(layers)
    assert schema.parameter("k", "second").allowed == "a mapping with _target_ or null"
    with pytest.raises(UnknownKey, match=r"k\.second is no setting: did you mean k\.seconds\?"):
        schema_of(lambda seconds: None).parameter("k", "second")


def test_what_the_program_gives_is_no_setting():
    def made(given: int, weight: float = 1.0) -> None:
        pass

    assert list(schema_of(made).without(["given"]).parameters) == ["weight"]
    nested = Parameter(Annotated[dict[str, Any], SettingsOf(made, supplied=("given",))] | None).nested
    assert list(nested.parameters) == ["weight"]


def test_albumentations_has_its_ranges_beside_its_constructors():
    with pytest.raises(ConfigError, match=r"^k=2 must be a number of at least 0 and at most 1$"):
        schema_of(albumentations.HorizontalFlip).parameters["p"].convert("k", 2)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training.epoch", "training.epoch is no setting: did you mean training.epochs? (possible are epochs, lr)"),
        ("training.foo", "training.foo is no setting (possible are epochs, lr)"),
        ("trainig.epochs", "trainig.epochs is no setting: did you mean training.epochs? (possible are epochs, lr)"),
        ("weight", "weight is no setting: did you mean loss.weight? (possible are epochs, lr)"),
        ("restart", "restart is called training.from_initial_weights now"),
        ("training.restart", "training.restart is called training.from_initial_weights now"),
    ],
)
def test_the_nearest_key_differs_in_one_part(key, message):
    assert str(UnknownKey(key, ["epochs", "lr"], ["training.epochs", "training.lr", "loss.weight"])) == message


def test_another_part_with_the_same_settings_has_the_same_new_names():
    renamed = UnknownKey("callbacks.mine.lesson", ["target", "weight"])
    assert str(renamed) == "callbacks.mine.lesson is called callbacks.mine.target now"
    assert "is no setting" in str(UnknownKey("callbacks.mine.lesson", ["weight"]))
    assert "is no setting" in str(UnknownKey("loss.lesson", ["target"]))


def test_of_many_names_none_is_listed():
    names = [f"name{i}" for i in range(99)]
    assert str(UnknownKey("a.x", names)).endswith("(python main.py --help a shows all)")
    assert str(UnknownKey("a.b.x", [], group="a")) == "a.b.x is no setting (python main.py --help a shows all)"
    assert str(UnknownKey("hydra.x", names)).endswith("(python main.py --cfg hydra shows all)")


def test_what_has_a_key_is_named():
    error = UnknownKey("loss.x", ["y"], owners=["loss=a", "loss=b"])
    assert str(error) == "loss.x is no setting here, it belongs to loss=a or loss=b"
