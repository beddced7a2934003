from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unspool.checkpoint.read import verify
from unspool.cli.inputs import UNITS, byte_size
from unspool.cli.quantize import chosen_format
from unspool.errors import CheckpointError
from unspool.spec.catalog import DEFAULTS, parse

from .conftest import FAMILIES, SIZES, write_model


def test_every_rate_has_a_default_format():
    for bits, name in DEFAULTS.items():
        fmt = chosen_format(None, bits, None)
        assert fmt.name == name
        assert fmt.code.bits_per_weight == bits


def test_the_table_adds_up_to_what_is_on_disk(run, tiny, tmp_path):
    out = tmp_path / "out"
    found = run("quantize", tiny, "-o", out, "--format", "t2-e2m1", "--json").json
    checkpoint = verify(out)
    assert [layer["name"] for layer in found["layers"]] == list(checkpoint.manifest.layers)
    assert found["bytes"] == sum(layer["bytes"] for layer in found["layers"])
    assert found["bits_per_weight"] == checkpoint.bits_per_weight
    assert found["model_bytes"] == checkpoint.nbytes
    assert all(0 < layer["relative_error"] < 0.1 for layer in found["layers"])


def test_the_text_shows_every_layer_and_the_totals(run, tiny, tmp_path):
    result = run("quantize", tiny, "-o", tmp_path / "out", "--bits", "2")
    assert result.err == ""
    assert "model.layers.1.mlp.down_proj" in result.out
    assert "whole model:" in result.out


@pytest.mark.parametrize("head", [None, "t4-e2m3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_dry_run_foretells_all_sizes_and_writes_nothing(run, tmp_path, head, tied):
    model = write_model(tmp_path / "model", tie_word_embeddings=tied, num_hidden_layers=1)
    options = ["--format", "t3-e2m3", "--json", *(["--head", head] if head else [])]
    planned = run("quantize", model, "-o", tmp_path / "out", "--dry-run", *options).json
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    written = run("quantize", model, "-o", tmp_path / "out", *options).json
    for key in ("weights", "bytes", "model_weights", "model_bytes", "bits_per_weight"):
        assert planned[key] == written[key], key
    checkpoint = verify(tmp_path / "out")
    assert checkpoint.nbytes == planned["model_bytes"]
    for layer in planned["layers"]:
        assert layer["bytes"] == checkpoint.layer_nbytes(layer["name"])


def test_a_dry_run_estimates_time_and_memory_from_rates_measured_now(run, tiny, text):
    options = ["--bits", "2", "--dry-run", "--threads", "1", "--json"]
    plain = run("quantize", tiny, *options).json
    given = ["--calibration", text, "--calibration-tokens", "512"]
    calibrated = run("quantize", tiny, *options, *given).json
    weighed = run("quantize", tiny, *options, *given, "--importance").json["estimate"]
    tuned = run("quantize", tiny, *options, *given, "--tune-blocks", "8").json["estimate"]
    parts = ("encoding_seconds", "passes_seconds", "importance_seconds", "tuning_seconds")
    for found in (plain["estimate"], calibrated["estimate"], weighed, tuned):
        assert found["threads"] == 1
        assert found["seconds"] == sum(found[part] for part in parts)
        rate = found["weights_per_second"]
        assert rate * found["encoding_seconds"] == pytest.approx(plain["weights"])
    assert plain["estimate"]["passes_seconds"] == 0
    assert plain["estimate"]["tokens_per_second"] is None
    assert plain["estimate"]["importance_seconds"] == 0
    assert calibrated["estimate"]["importance_seconds"] == 0
    assert weighed["importance_seconds"] > 0 == weighed["tuning_seconds"]
    assert tuned["tuning_seconds"] > 0
    passes = calibrated["estimate"]
    assert passes["tokens_per_second"] * passes["passes_seconds"] == pytest.approx(512)
    # At least what the model takes, and this process already.
    assert plain["estimate"]["peak_bytes"] > 100e6 + plain["model_bytes"]
    assert run("quantize", tiny, *options[:-1]).out.count("estimate:") == 1


def test_include_and_exclude_choose_layers(run, tiny):
    options = ["--bits", "2", "--dry-run", "--json", "--include", "*.mlp.*"]
    names = [
        x["name"] for x in run("quantize", tiny, *options, "--exclude", "re:down").json["layers"]
    ]
    assert names == [f"model.layers.{i}.mlp.{part}_proj" for i in (0, 1) for part in ("gate", "up")]


@pytest.mark.parametrize("family", FAMILIES)
def test_quantize_eval_and_generate_run_on_every_family(run, family, tmp_path, text):
    model, out = write_model(tmp_path / "model", family), tmp_path / "out"
    assert run("quantize", model, "-o", out, "--bits", "2").code == 0
    found = run("eval", out, "--baseline", model, "--text", text, "--json").json
    assert found["kl"] > 0
    assert run("generate", out, "--max-new-tokens", "4").code == 0


def test_sizes_that_fit_no_tile_are_padded(run, tmp_path):
    model = write_model(tmp_path / "model", hidden_size=52, intermediate_size=37)
    found = run("quantize", model, "-o", tmp_path / "out", "--format", "m2-e4m3:h32", "--json").json
    assert {tuple(layer["shape"]) for layer in found["layers"]} >= {(37, 52), (52, 37)}
    assert verify(tmp_path / "out").bits_per_weight > 2


def test_overwrite_replaces_a_checkpoint(run, tiny, damaged):
    (damaged / "old").touch()
    assert run("quantize", tiny, "-o", damaged, "--bits", "2", "--overwrite").code == 0
    assert not (damaged / "old").exists()


def test_overwrite_leaves_other_folders_alone(run, tiny, tmp_path):
    (tmp_path / "thesis.tex").touch()
    result = run("quantize", tiny, "-o", tmp_path, "--bits", "2", "--overwrite")
    _assert_refused(result, "only a checkpoint of unspool is overwritten")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--format", "t2-e2m", "-o", "out"), "no such format; found t2-e2m; allowed: t2-e2m1"),
        (("--head", "t9", "--bits", "2", "-o", "out"), "no such format"),
        (("--bits", "2.2", "-o", "out"), "no default format for that rate"),
        (("-o", "out"), "one of --format, --bits and --plan"),
        (("--bits", "2", "--format", "t2-e2m1", "-o", "out"), "one of --format, --bits and --plan"),
        (("--bits", "2"), "no output folder"),
        (("--bits", "2", "-o", "."), "the output exists"),
        (("--bits", "2", "-o", "out", "--include", "nothing"), "a pattern matches no linear layer"),
        (("--bits", "2", "-o", "out", "--include", "re:("), "not a regular expression"),
        (("--bits", "2", "-o", "out", "--shard-size", "5XB"), "not a size"),
        (("--bits", "2", "-o", "out", "--threads", "0"), "--threads"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_bad_option_is_one_line_and_leaves_nothing(
    run, tiny, tmp_path, monkeypatch, options, complaint
):
    monkeypatch.chdir(tmp_path)
    _assert_refused(run("quantize", tiny, *options), complaint)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_refused(run, tmp_path):
    result = run("quantize", tmp_path / "nowhere", "-o", tmp_path / "out", "--bits", "2")
    _assert_refused(result, "no such folder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_refused(run, tmp_path):
    _assert_refused(run("quantize", tmp_path, "-o", tmp_path / "out", "--bits", "2"), "not a model")
    assert list(tmp_path.iterdir()) == []


def test_a_nan_weight_is_named_by_layer_and_position(run, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = run("quantize", model, "-o", tmp_path / "out", "--bits", "2")
    _assert_refused(result, "model.layers.1.mlp.up_proj row 3, column 5: a weight is not finite")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_truncated_weights_are_refused(run, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run("quantize", model, "-o", tmp_path / "out", "--bits", "2")
    _assert_refused(result, "truncated")


def test_a_checkpoint_is_not_quantized_again(run, checkpoint, tmp_path):
    result = run("quantize", checkpoint, "-o", tmp_path / "out", "--bits", "2")
    _assert_refused(result, "quantized already")


def test_a_full_disk_leaves_nothing(run, tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    result = run("quantize", tiny, "-o", tmp_path / "out", "--bits", "2")
    _assert_refused(result, "no space left")
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_never_overwritten(run, tiny, damaged):
    before = sorted(path.name for path in tiny.iterdir())
    result = run("quantize", tiny, "-o", tiny, "--bits", "2", "--overwrite")
    _assert_refused(result, "only a checkpoint of unspool is overwritten")
    assert sorted(path.name for path in tiny.iterdir()) == before
    inside = shutil.copytree(tiny, damaged / "inside")
    for source in (damaged, inside):
        result = run("quantize", source, "-o", damaged, "--bits", "2", "--overwrite")
        _assert_refused(result, "the output is the model itself, or contains it")
    assert inside.is_dir()


def test_room_is_checked_before_any_work(run, tiny, tmp_path, monkeypatch):
    def too_late(*arguments):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("unspool.model.load.load_model", too_late)
    monkeypatch.setattr("unspool.checkpoint.write.os.access", lambda path, mode: False)
    result = run("quantize", tiny, "-o", tmp_path / "new" / "out", "--bits", "2")
    _assert_refused(result, "Permission denied")
    assert list(tmp_path.iterdir()) == []


def test_a_rotation_larger_than_the_layers_names_sizes_that_fit(run):
    result = run("quantize", "demo", "--format", "t2-e2m1:h4096", "--dry-run")
    _assert_refused(result, "k a multiple of 4096; or a smaller rotation, e.g. t2-e2m1:h")


def test_shards_are_as_small_as_asked(run, tiny, tmp_path):
    run("quantize", tiny, "-o", tmp_path / "out", "--bits", "2", "--shard-size", "60kB")
    sizes: dict[str, list[int]] = {}
    for tensor in verify(tmp_path / "out").tensors.values():
        sizes.setdefault(tensor.file.name, []).append(tensor.nbytes)
    assert len(sizes) > 1
    # A tensor that is larger by itself, as the embedding is, has a shard of its own.
    assert all(sum(held) <= 60_000 or len(held) == 1 for held in sizes.values())


@pytest.mark.parametrize(("unit", "count"), UNITS.items())
def test_sizes_have_units(unit, count):
    assert byte_size(f"3{unit}", "--size") == 3 * count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.5.2GB", "5 XB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(CheckpointError, match="not a size"):
        byte_size(text, "--shard-size")


def test_a_lean_declaration_has_the_bits_of_its_rate(run, tiny):
    found = run("quantize", tiny, "--bits", "3", "--dry-run", "--json").json
    fmt = parse(DEFAULTS[3])
    stored = sum(fmt.stored_bits(*layer["shape"]) for layer in found["layers"])
    assert found["bits_per_weight"] == stored / found["weights"]
    assert SIZES["hidden_size"] in {layer["shape"][1] for layer in found["layers"]}


def _assert_refused(result, complaint: str) -> None:
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert complaint in result.err
