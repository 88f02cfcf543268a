"""`sanawm doctor` says what is here, what is not, and what fits."""

import re
from importlib import metadata

import pytest
import tyro

from sanawm_env.cli import Command, Play, main
from sanawm_env.engines.sanawm import memory
from sanawm_env.engines.sanawm.engine import SanaLoadOptions
from sanawm_env.engines.sanawm.fitting import LADDER, RESERVE, SLACK, load_options, recommended
from sanawm_env.engines.sanawm.memory import predict_memory
from sanawm_env.engines.sanawm.official import OFFICIAL
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import world_folder
from tests.golden_files import ROOT
from tests.standin_hub import fetched

pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow  # a hub is written and fetched from


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Everything fetched but the text encoder of one world, so that all sizes are tiny."""
    worlds = {
        "streaming": ("dit", "codec", "refiner"),
        "chunk-causal": ("dit", "codec", "text", "refiner"),
        "bidirectional": ("dit", "codec", "text"),
    }
    with fetched(tmp_path_factory.mktemp("home"), worlds) as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield home


def doctor(capsys, *options):
    main(["doctor", *options])
    return capsys.readouterr().out


def test_it_tells_what_is_here_and_what_is_missing(capsys):
    shown = doctor(capsys, "--memory-gb", "24")
    assert re.search(r"torch .*\d+\.\d+", shown) and "sanawm-env[official]" in shown
    assert "sanawm fetch streaming --parts text (5.2 GB)" in shown
    assert "sanawm fetch bidirectional" not in shown
    rows = [line for line in shown.splitlines() if "fits" in line]
    for world in ("nano", "streaming", "streaming+refiner", "chunk-causal", "chunk-causal+refiner", "bidirectional"):
        assert any(re.match(rf"\W+{re.escape(world)} ", row) for row in rows), world
    assert sum("nvfp4" in row for row in rows) == 4


def test_the_best_setting_that_fits_is_one_command(capsys, home):
    """Of the tiny worlds; what fits is made to be less and less."""
    shown = doctor(capsys, "--memory-gb", "24")
    assert "sanawm play --world streaming --device cuda --refiner\n" in shown
    folder = world_folder("streaming")
    config = read_config(folder / "config.json")
    peaks = {setting: predict_memory(config, folder, load_options(*setting)).peak for setting in LADDER}
    for number, (refiner, bits, parts) in enumerate(LADDER):
        need = peaks[refiner, bits, parts]
        if need >= min((peaks[setting] for setting in LADDER[:number]), default=need + 1):
            continue  # one before it fits where this does
        told = recommended(need * SLACK + RESERVE, "cuda")
        command = told.splitlines()[-1].split()
        assert ("--refiner" in command) == refiner
        assert (bits in command) == (bits is not None)
        assert (",".join(parts) in command) == bool(parts)
        options = tyro.cli(Play, args=command[2:])  # it can be run
        assert SanaLoadOptions(**options.load_options) == load_options(refiner, bits, parts)
    assert "takes more than" in recommended(RESERVE, "cuda")


def test_the_page_of_the_official_weights_says_what_is_predicted(monkeypatch, tmp_path):
    monkeypatch.setenv("SANAWM_HOME", str(tmp_path))
    page = (ROOT / "docs" / "official.md").read_text()
    rows = re.findall(r"^\| ([\d GB,]+) \| (.*) \| ([\d.]+) GB \|$", page, re.M)
    assert len(rows) == 4
    for cards, setting, predicted in rows:
        wanted = dict(re.findall(r"(\w+)=(\"[^\"]*\"|True)", setting))
        for card in re.findall(r"\d+", cards):
            told = recommended(float(card) * 1e9, "cuda")
            given = tyro.cli(Play, args=told.splitlines()[-1].split()[2:]).load_options
            assert {name: str(value) for name, value in given.items()} == {n: v.strip('"') for n, v in wanted.items()}
            assert f"{predicted} GB predicted" in told
    for part, official in OFFICIAL["streaming"].items():
        assert re.search(rf"^\| {part} \|.*\| {official.gigabytes:g} GB \|", page, re.M), part
    for line in re.findall(r"^sanawm (?!doctor).*?(?=  #|$)", page, re.M):
        tyro.cli(Command, prog="sanawm", args=line.split()[1:])


def test_what_does_not_fit_says_by_how_much(capsys):
    shown = doctor(capsys, "--memory-gb", "0.5")
    assert "GB short" in shown
    assert not [line for line in shown.splitlines() if "fits" in line]


def test_a_library_that_is_missing_or_too_old_is_named_and_the_rest_goes_on(capsys, monkeypatch):
    version = metadata.version

    def other(name):
        if name == "torchao":
            raise metadata.PackageNotFoundError(name)
        return "0.30" if name == "diffusers" else version(name)

    monkeypatch.setattr(metadata, "version", other)
    shown = doctor(capsys, "--memory-gb", "24")
    assert re.search(r"torchao\W+missing", shown)
    assert re.search(r"diffusers\W+0\.30, which does not fit", shown)
    assert "fits" in shown


def test_a_world_that_cannot_be_measured_is_unknown(capsys, home):
    config = home / "worlds" / "streaming" / "codec" / "config.json"
    text = config.read_text()
    config.write_text("{")
    memory._codec.cache_clear()
    memory.forget()
    try:
        assert "unknown" in doctor(capsys, "--memory-gb", "23")
    finally:
        config.write_text(text)


def test_why_worlds_are_unknown_is_said_once_below_the_table(capsys, monkeypatch):
    def predict(offload):
        raise ImportError(reason)

    reason = 'The codec needs diffusers 0.42: pip install "sanawm-env[official]".'
    rows = [("streaming", "bf16", predict), ("streaming", "fp8", predict), ("bidirectional", "bf16", predict)]
    monkeypatch.setattr("sanawm_env.engines.sanawm.fitting.candidates", lambda: iter(rows))
    monkeypatch.setattr("sanawm_env.engines.sanawm.fitting.recommended", lambda *_: "")
    monkeypatch.setenv("COLUMNS", "80")
    shown = doctor(capsys, "--memory-gb", "24")
    assert shown.count(reason) == 1
    assert f"\nUnknown for streaming, bidirectional: {reason}\n" in shown
    assert sum(bool(re.match(r"│ (streaming|bidirectional)\W.* unknown +│$", line)) for line in shown.splitlines()) == 3


@pytest.mark.parametrize("memory", ["0", "-1", "nan", "1e300"])
def test_memory_is_that_of_a_machine(capsys, memory):
    with pytest.raises(SystemExit):
        main(["doctor", "--memory-gb", memory])
    assert "--memory-gb must be a finite number from 1e-06 to 1e+06" in capsys.readouterr().err
