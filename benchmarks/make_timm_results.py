"""Make `autoft/builtin/timm_results.csv`: what timm has published of its pretrained weights.

    git clone --bare https://github.com/huggingface/pytorch-image-models timm.git
    python benchmarks/make_timm_results.py timm.git

One row for each pretrained tag of the installed timm of which anything is known, at the size in pixels that the tag was
trained on, which is the one that autoft lists: top-1 accuracy in per cent on ImageNet-1k's validation images, with the
reassessed labels (real), on ImageNet-V2 (matched frequency) and on ImageNet-Sketch; multiply-adds of one image in 1e9,
and images a second on the GPU of `SPEED`, both of the architecture with its ImageNet head. What is not known is empty.
Parameters and licences are not there: timm itself says the latter, `make_timm_parameters.py` counts the former.

Then the tags that a search takes unasked are printed, each with how far it is from the front: the mean of its four
accuracies below the best mean among tags of a permissive licence that are at least as fast by both costs.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import common
import timm

from autoft.builtin.timm_zoo import HUB
from autoft.study.study import PERMISSIVE

TABLE = Path(__file__).parents[1] / "autoft" / "builtin" / "timm_results.csv"
ACCURACIES = ("imagenet", "imagenet-real", "imagenetv2-matched-frequency", "sketch")
SPEED = "benchmark-infer-amp-nchw-pt291-cu128-4090"
HEAD = """\
# timm's results/ at commit {commit} of huggingface/pytorch-image-models, Apache-2.0.
# Images per second: RTX 4090, AMP, NCHW, torch 2.9.1, CUDA 12.8, with the ImageNet head, as gmacs are.
"""


@dataclass(frozen=True)
class Row:
    """What is known of a tag; the names are those of the columns, "" is unknown."""

    tag: str
    size: int
    top1: str = ""
    real: str = ""
    v2: str = ""
    sketch: str = ""
    gmacs: str = ""
    images_per_second: str = ""

    @property
    def mean(self) -> float:
        """Of the four accuracies; of a tag that has them."""
        return sum(map(float, (self.top1, self.real, self.v2, self.sketch))) / 4

    def costs_no_more(self, other: Row) -> bool:
        """By both costs, which all tags with accuracies have."""
        fast = float(self.images_per_second) >= float(other.images_per_second)
        return fast and float(self.gmacs) <= float(other.gmacs)


@dataclass(frozen=True)
class Published:
    """The results in a clone of timm's repository."""

    clone: Path

    def commit(self) -> str:
        """The last that changed a result."""
        return self._git("log", "-1", "--format=%H", "--", "results/*.csv").strip()

    def by_size(self, name: str, size: str) -> Mapping[tuple[str, int], Mapping[str, str]]:
        """The rows of a file by model and input size, which stands in a column called `size`."""
        text = self._git("show", f"HEAD:results/{name}.csv")
        return {(row["model"], int(row[size])): row for row in csv.DictReader(text.splitlines())}

    def _git(self, *arguments: str) -> str:
        command = ("git", "-C", str(self.clone), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows(published: Published) -> Iterator[Row]:
    """Of every pretrained tag of which anything is known, in timm's order."""
    accuracies = [published.by_size(f"results-{name}", "img_size") for name in ACCURACIES]
    speeds = published.by_size(SPEED, "infer_img_size")
    for tag in timm.list_pretrained():
        size = max(timm.get_pretrained_cfg(tag).input_size[1:])
        scores = [_number(one.get((tag, size), {}).get("top1", ""), 2) for one in accuracies]
        speed = speeds.get((tag.partition(".")[0], size), {})
        gmacs = _number(speed.get("infer_gmacs", ""), 2)
        row = Row(tag, size, *scores, gmacs, _number(speed.get("infer_samples_per_sec", ""), 0))
        if row != Row(tag, size):
            yield row


def _number(text: str, digits: int) -> str:
    """Rounded, without the commas between thousands."""
    return f"{float(text.replace(',', '')):.{digits}f}" if text else ""


def write(found: Iterable[Row], commit: str) -> None:
    """The table, below where it comes from."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        file.write(HEAD.format(commit=commit))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows(map(astuple, found))


def show_hub(found: Sequence[Row]) -> None:
    """The tags that are searched unasked, and how far they are from the front."""
    licences = {row.tag: timm.get_pretrained_cfg(row.tag).license or "unknown" for row in found}
    rivals = [row for row in found if row.top1 and licences[row.tag].lower() in PERMISSIVE]
    hub = sorted((row for row in found if row.tag in HUB), key=lambda row: float(row.gmacs))
    behind = [max(rival.mean for rival in rivals if rival.costs_no_more(row)) - row.mean for row in hub]
    columns = ("tag", "GMACs", "images/s", "top-1", "mean of four", "behind the front")
    cells = [
        (row.tag, row.gmacs, row.images_per_second, row.top1, f"{row.mean:.1f}", f"{gap:.1f}")
        for row, gap in zip(hub, behind, strict=True)
    ]
    common.show("the default hub", columns, cells)


def main() -> None:
    """Write the table, and show what is searched by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clone", type=Path, help="of timm's repository, bare or not")
    published = Published(parser.parse_args().clone)
    found = list(rows(published))
    write(found, published.commit())
    show_hub(found)


if __name__ == "__main__":
    main()
