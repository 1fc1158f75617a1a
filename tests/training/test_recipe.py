import dataclasses

import pytest

from dyvit_deploy.errors import ConfigError
from dyvit_deploy.settings.fields import OPTIONS
from dyvit_deploy.training.recipe import FIELDS, RECIPES, Recipe, make_recipe, parse_value, read_recipe, values_of


def test_the_paper_recipe_is_the_published_one():
    recipe = make_recipe("paper", "deit-s", "student", {})
    assert (recipe.epochs, recipe.lr, recipe.lr_batch, recipe.backbone_lr, recipe.freeze_epochs) == (30, 1e-3, 1024,
                                                                                                     0.01, 5)
    assert (recipe.mixup, recipe.cutmix, recipe.random_erasing, recipe.ema) == (0.8, 1.0, 0.25, 0.9999)
    assert (recipe.ratio_weight, recipe.kl_weight, recipe.distill_weight, recipe.drop_path) == (2.0, 0.5, 0.5, 0.0)
    big = make_recipe("paper", "deit-b", "student", {})
    assert (big.ratio_weight, big.drop_path) == (5.0, 0.2)
    # The dense teacher is trained as DeiT.
    assert make_recipe("paper", "deit-b", "dense", {}).epochs == 300


def test_the_learning_rate_follows_the_batch_unless_it_is_given():
    assert make_recipe("paper", "deit-s", "student", {"batch": 256}).peak_lr == pytest.approx(2.5e-4)
    assert make_recipe("paper", "deit-s", "student", {"batch": 256, "lr": "2e-4"}).peak_lr == pytest.approx(2e-4)
    assert make_recipe("paper", "deit-s", "student", {"batch": 256, "lr": 4e-4, "lr_batch": 512}).peak_lr == 2e-4


def test_every_value_can_be_given_as_text():
    for name, entry in FIELDS.items():
        value = getattr(RECIPES["paper"].student, name)
        if value is not None:
            text = ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert parse_value(name, text) == value
        assert entry.metadata[OPTIONS].options[0].help
    assert parse_value("ema", "none") is None and parse_value("rand_augment", False) is None
    assert parse_value("elastic", "0.5:0.9") == (0.5, 0.9)


@pytest.mark.parametrize("suffix, text", [(".toml", 'recipe = "paper"\nepochs = 9\nrandom_crop = [0.5, 1.0]\n'),
                                          (".yaml", "recipe: paper\nepochs: 9\nrandom_crop: [0.5, 1.0]\n")])
def test_a_file_gives_the_base_and_single_values(tmp_path, suffix, text):
    path = tmp_path / f"recipe{suffix}"
    path.write_text(text)
    values = read_recipe(path)
    recipe = make_recipe(values.pop("recipe"), "deit-s", "student", values)
    assert recipe.epochs == 9 and recipe.random_crop == (0.5, 1.0) and recipe.mixup == 0.8


def test_a_backbone_that_would_never_train_is_refused_unless_freeze_epochs_are_given():
    with pytest.raises(ConfigError, match="stand still in all 5 epochs"):
        make_recipe("paper", "deit-s", "student", {"epochs": 5})
    assert make_recipe("paper", "deit-s", "student", {"epochs": 5, "freeze_epochs": 5}).freeze_epochs == 5


def test_help_names_the_value_of_each_recipe():
    assert (values_of("epochs"), values_of("kl_weight"), values_of("random_crop"), values_of("elastic")) == (
        "[small 8, paper 30]", "[0.5]", "[small off, paper 0.08:1.0]", "[off]")


@pytest.mark.parametrize("name, text, message", [
    ("r.yaml", "epochs: [", "not valid YAML"), ("r.toml", "epochs", "not valid TOML"),
    ("r.json", "{}", "no recipe file"),
    ("r.yaml", "- 1", "one value per line"), ("r.yaml", "epoch: 3", "Did you mean 'epochs'"),
    ("r.yaml", "recipe: 5", "names the base recipe"), ("r.yaml", "epochs: 2.7", "a whole number, not 2.7"),
    ("r.yaml", "lr: yes", "a number, not True"), ("r.yaml", "1: 2", "no value '1'"),
    ("r.yaml", "epochs: many", "a whole number, not 'many'"), ("r.yaml", "lr: null", "cannot be switched off"),
])
def test_files_that_are_not_a_recipe_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "missing.yaml")


@pytest.mark.parametrize("name, text, message", [
    ("a.yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"), ("a.yaml", "a: [" * 200, "not valid YAML"),
    ("a.toml", f"{'a.' * 1000}a = 1", "a line above 1000"), ("a.toml", "# x\n" * 20_000, "more than 32 KiB"),
    ("a.toml", "epochs = inf", "a number is inf"), ("a.yaml", "seed: 1" + "0" * 30, "more than 64 bit"),
    ("a.toml", "rand_augment = [1]", "is a name, not"), ("a.yaml", f"{'x' * 900}: 1", "no value 'xxx")])
def test_recipes_that_would_make_work_are_refused_with_the_reason(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(tmp_path / name)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("changes, message", [
    (dict(lr=float("nan")), "positive lr"), (dict(weight_decay=-1), "weight_decay must be a number from 0"),
    (dict(ema=1.5), "ema must lie between"), (dict(precision="bf61"), "Did you mean 'bf16'"),
    (dict(elastic=(0.9, 0.5)), "range like 0.5:0.9"), (dict(seed=2**31), "seed"), (dict(images=5), "do not fill"),
])
def test_values_outside_their_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Recipe(epochs=1, lr=1e-3), **changes)


def test_unknown_recipes_and_values_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        make_recipe("papre", "deit-s", "student", {})
    with pytest.raises(ConfigError, match="Did you mean 'mixup'"):
        make_recipe("small", "deit-s", "student", {"mixupp": 1})
