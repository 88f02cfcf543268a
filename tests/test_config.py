"""Settings are one value, whatever they come in: keywords, YAML, JSON, pickles. What does not fit is a sentence."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.training.nano import NANO
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import SHIPPED
from sanawm_env.world.reading import read


@dataclass(frozen=True)
class Inner:
    speed: float = 1.0
    steps: int = 2

    def __post_init__(self):
        if self.steps > 9:
            raise ValueError(f"steps must be at most 9, got {self.steps}.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    count: int = 1
    number: int | float = 1
    on: bool = False
    size: tuple[int, int] | None = None
    path: Path = Path()
    kind: Literal["a", "b"] = "a"
    seeds: int | Sequence[int] = 1
    boxes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    inner: Inner | None = Inner()
    scenes: Sequence[Any] = ()


def test_plain_values_become_what_the_fields_are():
    text = '{"name": "x", "number": 3, "size": [1, 2], "path": "a/b", "boxes": {"p": [1, 2.5]}, "inner": {"speed": 2}}'
    read_ = read(Settings, json.loads(text))
    assert read_ == Settings(name="x", number=3, size=(1, 2), path=Path("a/b"), boxes={"p": (1, 2.5)}, inner=Inner(2))
    assert isinstance(read_.number, int) and isinstance(read_.size, tuple) and isinstance(read_.inner.speed, float)
    assert read(Settings, {"name": "x", "inner": None, "seeds": [1, 2]}).seeds == [1, 2]
    assert read(Settings, {"name": "x", "colour": 1}, others=True) == Settings(name="x")


BAD = [
    ({}, "name is missing"),
    ([1], "it must be a mapping, got [1]"),
    ({"name": 3}, "name must be a text, got 3"),
    ({"count": "3"}, "count must be a whole number, got '3'"),
    ({"count": True}, "count must be a whole number, got True"),
    ({"count": 3.0}, "count must be a whole number, got 3.0"),
    ({"count": None}, "count must be a whole number, got None"),
    ({"number": "3"}, "number must be a number, got '3'"),
    ({"on": 1}, "on must be true or false, got 1"),
    ({"size": [1]}, "size has too few values"),
    ({"size": [1, 2, 3]}, "size has too many values, it takes 2"),
    ({"size": "12"}, "size must be a list, got '12'"),
    ({"path": 3}, "path must be a text, got 3"),
    ({"kind": "c"}, "kind must be 'a' or 'b', got 'c'"),
    ({"seeds": "many"}, "seeds must be a whole number or a list, got 'many'"),
    ({"seeds": [1, "x"]}, "seeds[1] must be a whole number, got 'x'"),
    ({"boxes": [1]}, "boxes must be a mapping, got [1]"),
    ({"boxes": {"p": [1, "x"]}}, "boxes.p[1] must be a number, got 'x'"),
    ({"inner": {"steps": 10}}, "steps must be at most 9, got 10."),
    ({"inner": {"sped": 1}}, "there is no setting 'sped' in inner (did you mean speed?), settings are speed, steps"),
    ({"contu": 1}, "there is no setting 'contu' (did you mean count?), settings are name, count, "),
    ({5: 1}, "there is no setting 5, settings are"),
    ({"scenes": "starts"}, "scenes must be a list, got 'starts'"),
    ({"scenes": [{1, 2}]}, "it must hold plain values"),
    ({"name": "\ud800"}, "it must hold plain values"),
]


@pytest.mark.parametrize(("data", "says"), BAD)
def test_what_does_not_fit_is_one_sentence(data, says):
    with pytest.raises(ValueError) as refused:
        read(Settings, {"name": "x"} | data if data and isinstance(data, dict) else data)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("data", [{"name": ["x" * 10**6]}, {"x" * 10**6: 1}, {"boxes": {"p" * 10**6: 3}}])
def test_no_sentence_is_as_long_as_what_a_stranger_wrote(data):
    with pytest.raises(ValueError) as refused:
        read(Settings, {"name": "x"} | data)
    assert len(str(refused.value)) < 400


def test_a_value_nested_deeper_than_python_goes_is_refused():
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"it must hold plain values|it cannot be read"):
        read(Settings, {"name": "x", "scenes": deep})


def test_a_world_that_was_written_is_the_one_that_is_read(tmp_path):
    assert read_config(SHIPPED / "nano" / "config.json") == NANO
    (tmp_path / "config.json").write_text(NANO.to_json())
    again = read_config(tmp_path / "config.json")
    assert again == NANO and hash(again) == hash(NANO)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["network"].update(depth="4"), "network.depth must be a whole number, got '4'"),
        (lambda c: c["network"].update(dpeth=4), "there is no setting 'dpeth' in network .did you mean depth"),
        (lambda c: c["network"].update(depth=0), "depth must be a whole number from 1 to 256, got 0"),
        (lambda c: c["network"].update(mlp_ratio=0), "mlp_ratio must be a finite number"),
        (lambda c: c.pop("sampler"), "sampler is missing"),
        (lambda c: c["sampler"].update(timesteps=[1, "x"]), r"sampler.timesteps\[1\] must be a number, got 'x'"),
        (lambda c: c["places"].update(court=4), "places.court must be a list, got 4"),
        (lambda c: c["places"].update(court=[1, 2]), "the bounding box of the place 'court' must be six numbers"),
        (lambda c: c["workspace"].update(hard_distance="8"), "workspace.hard_distance must be a number, got '8'"),
        (lambda c: c["workspace"].update(hard_distance=-8), "hard_distance of a workspace must be finite"),
    ],
)
def test_a_config_json_that_describes_no_world_is_refused(tmp_path, change, says):
    config = json.loads((SHIPPED / "nano" / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"is not the configuration of a world: {says}"):
        read_config(tmp_path / "config.json")


def test_numbers_stay_as_they_were_written():
    """A run is known again by the JSON of its network."""
    assert isinstance(read(SanaWMConfig, {"mlp_ratio": 3}).mlp_ratio, int)


@pytest.mark.slow
def test_the_help_is_shown_without_pydantic():
    code = "import sys; sys.argv = ['sanawm', '--help']\nimport sanawm_env.cli\ntry: sanawm_env.cli.main()\n"
    code += "except SystemExit: sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
