"""A setting describes its allowed values; its group checks them and makes the config."""

import re

import pytest

from agejax.config import SETTINGS, check, default, replaced
from agejax.errors import UserError
from agejax.settings import Duration, Group, Setting

GROUP = Group(
    "An example.",
    rate=Setting(0.1, "A share.", limits=(0, 1)),
    width=Setting(2.0, "A width.", above=0),
    smoothing=Setting(0.0, "A mass.", limits=(0, None), below=1),
    count=Setting(3, "A number.", limits=(1, 5)),
    on=Setting(False, "A switch."),
    name=Setting("a", "A name.", choices=("a", "b", "")),
    widths=Setting((), "Some widths.", item=int, limits=(1, 9)),
    crop=Setting((0.5, 1.0), "A range.", limits=(0, 1), length=2, rising=True),
    mean=Setting(None, "A colour.", kind=tuple, item=float, length=3, above=0),
    source=Setting(None, "A path.", kind=str),
    rules=Setting(((".*", 1.0),), "Rules."),
    options=Setting({}, "Open."),
    every=Duration({"epochs": 1.0}, "A duration."),
    inner=Group("A group.", seed=Setting(0, "A seed.")),
)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rate", (0, 1, 0.5)),
        ("width", (1e-9, 7)),
        ("smoothing", (0, 0.999)),
        ("count", (1, 5)),
        ("on", (True,)),
        ("name", ("b", "")),
        ("widths", ((), (1, 9), [3])),
        ("crop", ((0, 0), [0.2, 0.3])),
        ("mean", (None, (1, 2, 3.5))),
        ("source", (None, "x")),
        ("rules", ((), ((1, 2, 3),))),
        ("options", ({}, {"anything": 1})),
        ("every", ({"steps": 1},)),
        ("inner", ({}, {"seed": 7})),
    ],
)
def test_a_setting_takes_what_it_may_be(key, values):
    for value in values:
        GROUP.check({key: value}, "config.x")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("rate", 1.5, "set it to a number in 0..1"),
        ("rate", True, "set it to a number in 0..1"),
        ("rate", float("nan"), "set it to a number in 0..1"),
        ("rate", "0.5", "set it to a number in 0..1"),
        ("rate", None, "set it to a number in 0..1"),
        ("width", 0, "set it to a number above 0"),
        ("smoothing", 1, "set it to a number of 0 or more and below 1"),
        ("smoothing", -0.1, "set it to a number of 0 or more and below 1"),
        ("count", 2.0, "set it to a whole number in 1..5"),
        ("count", 6, "set it to a whole number in 1..5"),
        ("on", 1, "set it to True or False"),
        ("widths", 3, "set it to a list of whole numbers in 1..9"),
        ("widths", (1.5,), "set it to a list of whole numbers in 1..9"),
        ("widths", (3, 10), "set it to a list of whole numbers in 1..9"),
        ("crop", 0.5, "set it to (low, high) in 0..1"),
        ("crop", (0.9, 0.5), "set it to (low, high) in 0..1"),
        ("crop", (0.1, 0.2, 0.3), "set it to (low, high) in 0..1"),
        ("mean", (1.0, 2.0), "set it to 3 numbers above 0"),
        ("mean", (1.0, 0.0, 2.0), "set it to 3 numbers above 0"),
        ("source", 3, "set it to a text"),
        ("rules", 3, "set it to a list, such as (('.*', 1.0),)"),
        ("options", (), "set it to a dict"),
        ("every", 3, "set it to one of {'steps': n}, "),
        ("inner", 3, "set it to a dict {seed: ...}"),
    ],
)
def test_what_a_setting_must_not_be_is_named_with_what_it_may_be(key, value, wanted):
    with pytest.raises(UserError, match=re.escape(f"config.x.{key}: {value!r}; {wanted}")):
        GROUP.check({key: value}, "config.x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "c"}, "config.x.name: 'c' is not one of a, b, ''"),
        ({"nmae": "a"}, "config.x: unknown key 'nmae'; did you mean 'name'?"),
        ({"inner": {"sede": 1}}, "config.x.inner: unknown key 'sede'; did you mean 'seed'?"),
        ({"inner": {"seed": 0.5}}, "config.x.inner.seed: 0.5; set it to a whole number"),
    ],
)
def test_a_choice_or_a_key_that_is_not_there_is_named_with_those_that_are(given, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        GROUP.check(given, "config.x")


def test_a_whole_config_lacks_nothing():
    made = GROUP.config()
    GROUP.check(made, "config.x", complete=True)
    with made.unlocked():
        del made.inner["seed"]
    with pytest.raises(UserError, match=r"^config\.x\.inner\.seed is missing"):
        GROUP.check(made, "config.x", complete=True)
    GROUP.check(made, "config.x")


def test_a_config_has_the_defaults_and_knows_the_types_of_what_is_none():
    made = GROUP.config()
    assert (made.rate, made.crop, made.source, made.inner.seed) == (0.1, (0.5, 1.0), None, 0)
    assert made.options.to_dict() == {}
    assert made.every.to_dict() == {"epochs": 1.0}
    made.source = "x"
    with pytest.raises(TypeError):
        made.mean = "grey"
    made.options.more = 1  # in this config only
    assert GROUP.config().options.to_dict() == GROUP.defaults()["options"] == {}


def test_every_setting_of_the_config_takes_its_default_and_has_one_sentence():
    check(default())
    for path, setting in SETTINGS.walk("config"):
        assert re.match(r"[A-Zm].*\.$|[a-z_0-9]+( and [a-z_]+)?: .*\.$", setting.help), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sampling.kind", "even"),
        ("sampling.power", 2.0),
        ("optim.name", "lion"),
        ("schedule.kind", "onecycle"),
        ("schedule.lr", 0.0),
        ("schedule.lr_batch_size", -1),
        ("eval.best_mode", "least"),
        ("model.dtype", "float16"),
        ("nonfinite", "ignore"),
        ("data.split.balanced.short", "skip"),
        ("data.split.balanced.n", -1),
        ("augment.crop", (0.9, 0.5)),
    ],
)
def test_a_setting_of_the_config_that_cannot_be_is_named(path, value):
    wrong = default()
    wrong.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=rf"^config\.{re.escape(path)}: "):
        check(wrong)


def test_a_config_with_settings_replaced_has_any_of_an_open_dict_and_another_unit():
    base = default()
    base.heads.age = {"kind": "regression"}
    values = {"total.steps": 200, "data.options.labels": "x.csv", "heads.age.loss": "l2"}
    made = replaced(base, values)
    assert made.total.to_dict() == {"steps": 200}
    assert made.data.options.to_dict() == {"labels": "x.csv"}
    assert made.heads.age.to_dict() == {"kind": "regression", "loss": "l2"}
    assert base.total.to_dict() == {"epochs": 15.0}


@pytest.mark.parametrize("path", ["model.nmae", "optm.name", "heads.bmi.loss"])
def test_a_path_that_is_not_there_is_not_replaced(path):
    with pytest.raises(UserError, match=rf"^config\.{path}: there is no"):
        replaced(default(), {path: 1})
