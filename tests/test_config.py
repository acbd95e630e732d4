"""Configuration: shipped files load; mistakes are told in one line, with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.config.root import load
from flywheel.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "did you mean 'epochs'?"),
        ("trane.epochs=3", "did you mean 'train'?"),
        ("zzz=1", "known keys: name, data_dir"),
        ("train.epochs.planner=0", "greater than or equal to 1"),
        ("train.epochs.planner=many", "valid integer"),
        ("student.heads=3", "heads=3 does not divide hidden=160"),
        ("collect.mistakes.loop=1.5", "less than or equal to 1"),
        ("curate.verifiers=[]", "at least 1"),
        ("seed.deep=1", "'seed' is a value, not a section"),
        ("no-equals-sign", "--set takes key=value"),
        ('curate.verifiers=[{ nam = "replay" }]', "did you mean 'name'?"),
        ('curate.verifiers=[{ name = "replay", bar = { recal = 1.0 } }]', "did you mean 'recall'?"),
        ('curate.verifiers=["replay", "replay"]', "named twice"),
        ('curate.verifiers=[{ name = "judge", arguments = { base_url = "http://me:pw@host/v1" } }]', "password"),
        ("curate.calibration_start=100", "raise curate.calibration_start"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "quickstart.toml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_read_toml_values_and_plain_words() -> None:
    overrides = [
        "train.epochs={planner=7, executor=1, flat=1}",
        "data_dir=some place",
        "collect.mistakes.wrong_action=0.0",
    ]
    config = load(CONFIGS / "quickstart.toml", overrides)
    assert (config.train.epochs.planner, str(config.data_dir), config.collect.mistakes.wrong_action) == (
        7,
        "some place",
        0.0,
    )


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config at"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path / "bad.toml")


def test_identity_ignores_where_and_when_but_not_what() -> None:
    path = CONFIGS / "quickstart.toml"
    base = load(path).identity()
    assert load(path, ["data_dir=elsewhere", "iterations=9", "serve.cron='* * * * *'"]).identity() == base
    measured = ["curate.workers=7", "curate.calibration_tasks=30"]
    barred = 'curate.verifiers=[{ name = "privileged", bar = { precision = 0.9 } }, "integrity", "replay"]'
    assert load(path, [*measured, barred]).identity() == base
    assert load(path, ['curate.verifiers=["privileged", "replay"]']).identity() != base
    assert load(path, ["train.learning_rate=0.1"]).identity() != base


@pytest.mark.parametrize(
    ("parameter", "held"),
    [
        ('url = "https://host/mcp?api_key=sk-1"', True),
        ('options = { token = "t" }', True),
        ('command = ["server", "--password=p"]', True),
        ('url = "https://host/mcp?api_key=${KEY}"', False),
        ('options = { token = "${KEY}" }', False),
        ("options = { max_tokens = 5 }", False),
    ],
)
def test_parameters_hold_no_secrets(tmp_path: Path, parameter: str, held: bool) -> None:
    """They stand in every trajectory."""
    path = tmp_path / "c.toml"
    path.write_text(f'name = "c"\ndata_dir = "d"\n[environment]\nname = "mcp"\n[environment.parameters]\n{parameter}\n')
    if held:
        with pytest.raises(ConfigError, match="must not hold a secret"):
            load(path)
    else:
        load(path)
