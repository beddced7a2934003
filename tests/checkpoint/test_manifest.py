"""The manifest: complete, checked, and clear about what it cannot read."""

from __future__ import annotations

import copy
import json

import pytest

from unspool.checkpoint.manifest import Layer, Manifest, parse
from unspool.errors import CheckpointError
from unspool.spec.catalog import FORMATS
from unspool.spec.catalog import parse as format_named

MANIFEST = Manifest(
    layers={
        "a.q": Layer(format=format_named("nvfp4"), shape=(64, 32)),
        "a.k": Layer(format=format_named("int8:h32"), shape=(8, 32)),
        "b.q": Layer(format=format_named("nvfp4"), shape=(64, 32)),
    }
)


def test_it_comes_back_through_json():
    stored = MANIFEST.to_json()
    assert parse(json.loads(json.dumps(stored))).to_json() == stored


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_catalog_is_declared_in_full(name):
    manifest = Manifest(layers={"x": Layer(format=format_named(name), shape=(1, 1))})
    back = parse(json.loads(json.dumps(manifest.to_json()))).layers["x"].format
    assert back.content_hash == format_named(name).content_hash


def test_two_layers_of_one_format_declare_it_once():
    data = MANIFEST.to_json()
    assert list(data["formats"]) == ["int8:h32", "nvfp4"]
    assert data["layers"]["b.q"] == {"format": "nvfp4", "shape": [64, 32]}
    assert (data["quant_method"], data["format_version"]) == ("unspool", 1)


@pytest.mark.parametrize("version", [0, -1, None, "1", True, 1.0])
def test_a_version_that_is_no_version(version):
    with pytest.raises(CheckpointError, match="no format_version"):
        parse({**MANIFEST.to_json(), "format_version": version})


def test_a_newer_version_names_the_release_that_reads_it():
    newer = {**MANIFEST.to_json(), "format_version": 2, "version": "0.9.1"}
    with pytest.raises(CheckpointError, match=r"unspool 0.9.1 or later.*up to 1"):
        parse(newer)


@pytest.mark.parametrize("other", [None, [], {}, {"quant_method": "gptq"}])
def test_another_quantization_is_not_ours(other):
    with pytest.raises(CheckpointError, match="not quantized by unspool"):
        parse(other)


BREAKS = {
    "content hash": lambda d: d["formats"]["nvfp4"].update(content_hash="0" * 16),
    "two names": lambda d: d["formats"]["nvfp4"].update(name="other"),
    "does not match its": lambda d: d["formats"]["nvfp4"].update(scale="b32-e8m0"),
    "cannot exist": lambda d: d["formats"]["nvfp4"].update(rotation="h33"),
    "cannot exist.*KeyError": lambda d: d["formats"]["nvfp4"].pop("code"),
    "cannot exist.*plane": lambda d: d["formats"]["nvfp4"]["code"].update(planes=[[1, 2]]),
    "cannot exist.*TypeError": lambda d: d["formats"]["nvfp4"]["code"].update(tile=[8, None]),
    "not a declaration": lambda d: d["formats"].update(nvfp4=[]),
    "no such format": lambda d: d["layers"]["a.q"].update(format="none"),
    "no such format; found .x": lambda d: d["layers"]["a.q"].update(format=["x"]),
    "not a shape; found 0": lambda d: d["layers"]["a.q"].update(shape=[0, 4]),
    "not a shape; found 4": lambda d: d["layers"]["a.q"].update(shape=4),
    "not a shape.*e": lambda d: d["layers"]["a.q"].update(shape=[1 << 40, 4]),
    "not a layer": lambda d: d["layers"].update({"a.q": "nvfp4"}),
    "no formats or no layers": lambda d: d.update(layers={}),
    "no formats or no layers; *|no formats": lambda d: d.pop("formats"),
}


@pytest.mark.parametrize("message", BREAKS)
def test_a_manifest_that_makes_no_sense(message):
    data = copy.deepcopy(MANIFEST.to_json())
    BREAKS[message](data)
    with pytest.raises(CheckpointError, match=message.replace(".x", "x")):
        parse(data)
