"""A transformer at another size than its own: searched, trained, exported through the gate and read again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import timm
import torch
from safetensors.torch import save

TAG = "test_vit.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache of the Hub that holds the weights of one tag, random ones."""
    torch.manual_seed(0)
    weights = save(timm.create_model("test_vit").state_dict())
    folder = tmp_path / "hub" / f"models--timm--{TAG}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "snapshots" / "0123" / "model.safetensors").write_bytes(weights)
    return tmp_path / "hub"


def autoft(hub: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoft", *map(str, arguments)]
    env = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, check=False)


def test_a_vit_is_trained_and_exported_at_another_size(tiny_images: Path, hub: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    only = ("--backbones", f"timm/{TAG}", "--freeze", "full", "--runner", "inline", "--offline")
    limits = ("--image-size", 96, "--trials", 1, "--time", "5m")
    done = autoft(hub, "search", tiny_images, *only, *limits, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"]["image_size"] == 96

    core = onnx.load(run / "export" / "model.core.onnx")
    shape = [axis.dim_value for axis in core.graph.input[0].type.tensor_type.shape.dim]
    assert shape[1:] == [3, 96, 96]
    assert "Resize" not in {node.op_type for node in core.graph.node}  # positions were resampled before training

    again = autoft(hub, "export", run, "--trial", 0, "--out", tmp_path / "again")  # weights of the same fingerprint
    assert again.returncode == 0, again.stderr


def test_a_size_of_no_whole_patches_is_refused(tiny_images: Path, hub: Path, tmp_path: Path) -> None:
    arguments = ("--backbones", f"timm/{TAG}", "--offline", "--image-size", 100, "--out", tmp_path / "run")
    done = autoft(hub, "search", tiny_images, *arguments, "--time", "5m", "--runner", "inline")
    assert done.returncode == 2
    assert f"--image-size 100: timm/{TAG} takes multiples of 16 px only" in done.stderr
