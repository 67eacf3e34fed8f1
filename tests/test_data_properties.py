"""Whatever data is given: no image on two sides, every one a sample or a problem, and errors of one line."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from parts.data import source
from PIL import Image

from autoft.data.dataset import Dataset, open_dataset
from autoft.data.manifest import ManifestReader
from autoft.data.readers import read_labelled
from autoft.errors import DataError
from autoft.parts.base import Task
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.ordinal import Ordinal
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import SingleLabel
from autoft.values.dataset import Entry

CONTENTS, COPIES = 12, 3
NAMES = [f"{content}-{copy}.png" for content in range(CONTENTS) for copy in range(COPIES)]
CELLS = {
    SingleLabel: ("a", "b", "1", "1.0", ""),
    MultiLabel: ("a", "b", "a|b", "b|a", "a| a", ""),
    Regression: ("1", "2", "1.0", "2e0", "-0", "0", "2.5", "n/a", "inf", "1,5", ""),
    Ordinal: ("1", "2", "3", "high", ""),
}
tasks = st.sampled_from(sorted(CELLS, key=lambda task: task.name))
splits = st.sampled_from(["", "", "train", "val", "test"])
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which each stands there several times; of one content a copy is cut off, of another the text lies."""
    folder = tmp_path_factory.mktemp("pool")
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number // COPIES).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "cut.png").write_bytes((folder / NAMES[0]).read_bytes()[:-30])
    (folder / "text.png").write_text("no image")
    return folder


def opened(path: Path, task: Task, seed: int) -> Dataset | None:
    """The data set, or nothing where it is refused as it should be."""
    try:
        return open_dataset(source(path, task), seed, {(8, "bicubic", "crop")}, 1)
    except DataError as refused:
        assert "\n" not in str(refused)
        event("refused")
        return None


def check(found: Dataset, entries: tuple[Entry, ...]) -> None:
    """What holds of every data set."""
    event("opened")
    said = {entry.path: entry.split for entry in entries}
    samples = {sample.path: sample for sample in found.samples}
    assert len(samples) == len(found.samples) == len({sample.row for sample in found.samples})
    assert samples.keys() | {problem.path for problem in found.info.problems} >= said.keys() >= samples.keys()
    sides, targets = defaultdict(set), defaultdict(set)
    for path, sample in samples.items():
        sides[sample.digest].add(sample.split)
        targets[sample.digest].add(np.asarray(found.task.encode([sample.label])).tobytes())
        assert sample.split == said[path] or said[path] in (None, "train")
    assert {len(names) for names in sides.values()} == {1}
    contradicting = {samples[one.path].digest for one in found.info.contradictions}
    assert contradicting == {digest for digest, meanings in targets.items() if len(meanings) > 1}
    for name in ("train", "val", "test"):
        assert len(found.targets(name)) == len(found.rows(name)) == found.info.counts[name] > 0
        assert sorted(found.stratified(name, 0)) == list(range(found.info.counts[name]))


@many
@given(data=st.data(), task=tasks, given_splits=st.booleans(), seed=st.integers(0, 3))
def test_any_manifest(pool: Path, data: st.DataObject, task: type[Task], given_splits: bool, seed: int) -> None:
    files = st.sampled_from([*NAMES, *NAMES, "cut.png", "text.png", "missing.png", ""])
    usual = [(name, CELLS[task][int(name.partition("-")[0]) % 2], "") for name in NAMES]
    rows = data.draw(st.sampled_from([usual, usual, usual, []]))
    cells = st.tuples(files, st.sampled_from(CELLS[task]), splits if given_splits else st.just(""))
    rows = rows + data.draw(st.lists(cells, min_size=1, max_size=20))
    path = pool / "data.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *data.draw(st.permutations(rows))])
    if (found := opened(path, task(), seed)) is not None:
        check(found, ManifestReader().read(path).entries)


@settings(many, max_examples=40)
@given(data=st.data(), task=tasks, seed=st.integers(0, 3))
def test_any_folders(pool: Path, tmp_path: Path, data: st.DataObject, task: type[Task], seed: int) -> None:
    names = st.sampled_from([name for name in CELLS[task] if name] + ["x"])
    labels = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    for place in data.draw(st.sampled_from([("",), ("train", "val"), ("train", "val", "test")])):
        for label in labels:
            (root / place / label).mkdir(parents=True)
            for name in data.draw(st.lists(st.sampled_from([*NAMES, "text.png"]), min_size=5, max_size=15)):
                shutil.copy(pool / name, root / place / label / name)
    if (found := opened(root, task(), seed)) is not None:
        check(found, read_labelled(root).entries)
