"""Which backbones a study searches, at which input size, and the candidates that come of them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from autoft.errors import BackboneUnavailable, StudyError, first_names, unknown_name
from autoft.parts.base import FreezeStrategy, Task
from autoft.parts.host import Host
from autoft.study.record import Machine
from autoft.study.study import PERMISSIVE, Study, licence_allowed
from autoft.system.parallel import Check, in_thread, never_stop
from autoft.system.screen import Screen
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.counts import counted
from autoft.values.space import Circumstances, Device, Space
from autoft.values.trial import Candidate, Trial

MOST_BACKBONES = 8
SIZE_STEP = 32
SMALLEST_SIZE = 64
# Small images gain from being enlarged, because a pretrained stride of 32 leaves little of them otherwise; see
# benchmarks/image_size.py. More than this costs time and brings no detail.
ENLARGE = 2.0
# Multiply-adds an image and parameter at 224 px, the middle of timm's published models, for backbones whose zoo does
# not give them; and a worker's multiply-adds a second. Both only decide whether probing a backbone fits into
# `PROBE_SHARE` of the time at all.
WORK_PER_PARAMETER = 130.0
WORK_PER_SECOND: Mapping[str, float] = {"cpu": 3e10, "cuda": 1e13}
PROBE_SHARE = 0.25
# Of the time, for scoring all validation images once, by the backbone for which that takes longest.
SCORING_SHARE = 0.04
FEWEST_SCORED = 200


def forward_work(cost: float) -> float:
    """Multiply-adds of one forward pass of one image, roughly, for a `Candidate.cost`."""
    return cost * 1e12 * WORK_PER_PARAMETER / 224**2


def choose_size(study: Study, spec: InputSpec, side: int) -> int:
    """The input size in pixels for images whose view has the resolution of a square of this `side` (`side_seen`).

    A backbone of one fixed size keeps it; the others obey `--image-size`, if they can be built for it; otherwise images
    are enlarged at most `ENLARGE` times and never beyond what the backbone was trained on.
    """
    if spec.fixed_size and not spec.size_step:
        return spec.size
    if study.image_size and spec.takes(study.image_size):
        return study.image_size
    step = spec.size_step or SIZE_STEP
    wanted, smallest = _multiple(step, side * ENLARGE), _multiple(step, SMALLEST_SIZE)
    largest = spec.size if spec.size_step else spec.size // step * step
    return max(min(wanted, largest), min(smallest, spec.size))


def _multiple(step: int, size: float) -> int:
    """The least multiple of `step` that is not below `size`."""
    return step * math.ceil(size / step)


@dataclass(frozen=True)
class Workload:
    """How many images there are, and the side in pixels of what is seen of a median one (`side_seen`)."""

    images: int
    side: int


def shortlist(
    study: Study, host: Host, machine: Machine, workload: Workload, screen: Screen, check: Check = never_stop
) -> tuple[Backbone, ...]:
    """The backbones to search, most promising first, as their zoos offer them: `sized` has them built for a view.

    Named ones (`--backbones`) as asked for; otherwise the `recommended` that fit the time, those of zoos that the user
    gave as a file or an object before the others. What the user named and does not get is skipped with a line. Raises
    `StudyError` when nothing is left, or nothing of the size that was asked for, of images or of networks.
    """
    known = host.backbones()
    _require_licences(study, known)
    given = _given(host, known)
    asked = _named(study, host, known) if study.backbones else recommended(host, known)
    missed = asked if study.backbones else given  # whose absence has to be explained
    allowed = _licensed(study, asked, missed, screen)
    here = [backbone for backbone in allowed if backbone.weights == "local"]
    elsewhere = [backbone for backbone in allowed if backbone.weights != "local"]
    _report_offline(study, _among(elsewhere, missed), screen)
    wanted = _small_enough(study, here if study.offline else here + elsewhere, screen)
    chosen = wanted if study.backbones else _affordable(study, wanted, given, machine, workload)
    _require_size(study, chosen)
    _report_choice(study, chosen, _among(wanted, missed), screen)
    fitting = [sized(study, backbone, workload.side) for backbone in chosen]
    available = _fetched(study, host, fitting, screen, check)
    if not available:
        raise StudyError(_nothing_left(study, asked, allowed, wanted))
    _require_size(study, available)
    names = {backbone.name for backbone in available}
    return tuple(backbone for backbone in chosen if backbone.name in names)


def recommended(host: Host, known: list[Backbone]) -> list[Backbone]:
    """Those that a search takes unasked, where they fit the time: of zoos that the user gave prior or not."""
    given = _given(host, known)
    return given + [one for one in known if one.by_default and one.prior is not None and one not in given]


def _given(host: Host, known: list[Backbone]) -> list[Backbone]:
    """Those of zoos that the user gave as a file or an object, but for what their zoo keeps for who names it."""
    return [one for one in known if one.by_default and one.name.partition("/")[0] in host.zoos_by_hand]


def sized(study: Study, backbone: Backbone, side: int) -> Backbone:
    """The backbone as its zoo has to build it for images whose view has the resolution of a square of this `side`."""
    return _built_for(choose_size(study, backbone.input, side), backbone)


def _built_for(size: int, backbone: Backbone) -> Backbone:
    """The backbone as its zoo has to build it for images of that size."""
    if not (backbone.input.fixed_size and backbone.input.size_step):
        return backbone
    return backbone.at(size)


def scored_images(study: Study, machine: Machine, candidates: Iterable[Candidate], images: int) -> int | None:
    """How many of so many validation images a search can score again and again; None for all of them."""
    an_image = forward_work(max(candidate.cost for candidate in candidates)) / WORK_PER_SECOND[machine.device]
    affordable = max(FEWEST_SCORED, int(SCORING_SHARE * study.time / an_image))
    return affordable if affordable < images else None


def freeze_strategies(study: Study, known: Mapping[str, FreezeStrategy], task: Task) -> list[FreezeStrategy]:
    """The strategies that are named, else those by default that can fit the task. Raises `StudyError`."""
    usual = [one for one in known.values() if one.by_default and (task.has_closed_form or one.fit == "gradient")]
    named = study.freeze or tuple(one.name for one in usual)
    if not named:
        others = f"name some with --freeze: {', '.join(known)}" if known else "leave 'freeze' on"
        raise StudyError(f"no freeze strategy is tried unasked for task {task.name!r}; {others}")
    for name in named:
        if name not in known:
            raise unknown_name("freeze strategy", name, known)
        if known[name].fit == "closed_form" and not task.has_closed_form:
            raise StudyError(
                f"--freeze {name} fits heads in closed form, and task {task.name!r} has none; leave it out"
            )
    return [one for name, one in known.items() if name in named]


def candidates(
    study: Study,
    strategies: Iterable[FreezeStrategy],
    backbones: Iterable[Backbone],
    side: int,
    circumstances: Circumstances,
) -> tuple[Candidate, ...]:
    """Backbone x freeze strategy, each with its space under these circumstances."""
    spaces = [(strategy, strategy.space_for(circumstances)) for strategy in strategies]
    return tuple(
        _candidate(backbone, strategy, space, choose_size(study, backbone.input, side))
        for backbone in backbones
        for strategy, space in spaces
    )


def _candidate(backbone: Backbone, strategy: FreezeStrategy, space: Space, size: int) -> Candidate:
    return Candidate(backbone.name, strategy.name, size, space, strategy.fit, _cost(backbone, size), backbone.prior)


def why_not(study: Study, host: Host, searched: Iterable[Candidate], trial: Trial) -> tuple[str, str]:
    """Which part of another run's trial is in none of the candidates that are searched, and why."""
    name, known = trial.backbone, {backbone.name: backbone for backbone in host.backbones()}
    if all(candidate.backbone != name for candidate in searched):
        return name, _why_no_backbone(study, known[name]) if name in known else "no plugin has it"
    if trial.freeze not in host.parts(FreezeStrategy):
        return trial.freeze, "no plugin has it"
    return trial.freeze, "not among --freeze" if study.freeze else f"--freeze {trial.freeze} searches it"


def _why_no_backbone(study: Study, backbone: Backbone) -> str:
    """The first of the filters of a shortlist that leaves it out."""
    if study.backbones and not any(fnmatch.fnmatchcase(backbone.name, pattern) for pattern in study.backbones):
        return "not among --backbones"
    if not licence_allowed(backbone.license, study.licenses):
        return f"--licenses {','.join(study.licenses)} does not allow {backbone.license}"
    if study.offline and backbone.weights != "local":
        return "--offline, and its weights are not here"
    if study.max_params is not None and backbone.parameters > study.max_params:
        return f"above --max-params {study.max_params:,}"
    return "its weights could not be had" if study.backbones else f"--backbones {backbone.name} searches it"


def forward_seconds(backbone: Backbone, size: int, device: Device) -> float:
    """What one forward pass of one image takes a worker, roughly."""
    return forward_work(_cost(backbone, size)) / WORK_PER_SECOND[device]


def _cost(backbone: Backbone, size: int) -> float:
    """Parameters times pixels in 1e12, as many parameters as usually take the multiply-adds where those are known.

    Above zero, as others divide by it: some features, such as colours counted, have no parameter.
    """
    if backbone.gmacs is None:
        parameters = float(backbone.parameters)
    else:
        parameters = backbone.gmacs * 1e9 / WORK_PER_PARAMETER * (224 / backbone.input.size) ** 2
    return max(1.0, parameters) * size**2 / 1e12


def _named(study: Study, host: Host, known: list[Backbone]) -> list[Backbone]:
    """What the globs of `--backbones` select. A name that selects nothing is an error."""
    chosen: dict[str, Backbone] = {}
    for pattern in study.backbones:
        found = [backbone for backbone in known if fnmatch.fnmatchcase(backbone.name, pattern)]
        if not found:
            zoo = pattern.partition("/")[0] + "/"
            names = [backbone.name for backbone in known]
            unknown = unknown_name("backbone", pattern, [name for name in names if name.startswith(zoo)] or names)
            raise StudyError(f"{unknown}{host.suspects()}")
        chosen |= {backbone.name: backbone for backbone in found}
    return list(chosen.values())


def _require_licences(study: Study, known: list[Backbone]) -> None:
    """Raise `StudyError` for a licence that is neither of the usual ones nor any backbone's."""
    names = {"any", "permissive", *PERMISSIVE, *(backbone.license for backbone in known)}
    for name in study.licenses:
        if name not in names:
            raise unknown_name("licence", name, names)


def _licensed(study: Study, backbones: list[Backbone], missed: list[Backbone], screen: Screen) -> list[Backbone]:
    kept = [backbone for backbone in backbones if licence_allowed(backbone.license, study.licenses)]
    refused = [backbone for backbone in missed if not licence_allowed(backbone.license, study.licenses)]
    if refused:
        named = ", ".join(f"{backbone.name} ({backbone.license})" for backbone in refused[:3])
        screen.note(
            f"skipped for their licence: {named}; allow it with "
            f"--licenses {','.join((*study.licenses, refused[0].license))} or --licenses any"
        )
    return kept


def _small_enough(study: Study, backbones: list[Backbone], screen: Screen) -> list[Backbone]:
    """Those within `--max-params`. Raises `StudyError` when there are some, and all are larger."""
    most = study.max_params
    if most is None or not backbones:
        return backbones
    kept = [backbone for backbone in backbones if backbone.parameters <= most]
    if not kept:
        least = min(backbones, key=lambda backbone: backbone.parameters)
        raise StudyError(
            f"--max-params {most:,} leaves none of the backbones that can be used here; the smallest is "
            f"{least.name} with {counted(least.parameters, 'parameter')}"
        )
    if larger := [backbone for backbone in backbones if backbone.parameters > most]:
        screen.note(
            f"{len(larger)} of {counted(len(backbones), 'backbone')} are above --max-params {most:,}: {_some(larger)}"
        )
    return kept


def _report_offline(study: Study, elsewhere: list[Backbone], screen: Screen) -> None:
    if study.offline and elsewhere:
        screen.note(f"skipped, weights not on this machine: {_some(elsewhere)}; drop --offline to download them")


def _report_choice(study: Study, chosen: list[Backbone], expected: list[Backbone], screen: Screen) -> None:
    """Say what of the backbones the user named is not searched, or not as might be thought."""
    if unsung := [backbone for backbone in chosen if backbone.prior is None] if not study.backbones else []:
        screen.note(f"searched without a prior, as you named their plugin: {_some(unsung)}")
    taken = {backbone.name for backbone in chosen}
    if left := [backbone for backbone in expected if backbone.name not in taken]:
        limits = f"the time, or the {MOST_BACKBONES} backbones of a search"
        screen.note(f"not searched: {_some(left)}; more than {limits}; --backbones takes any you name")
    for backbone in chosen:
        if not _can_have_size(study, backbone):
            screen.note(f"{_only(backbone)}; --image-size {study.image_size} is not used for it")


def _require_size(study: Study, backbones: list[Backbone]) -> None:
    """Raise `StudyError` when none of the backbones, of which there are some, can have the size that was asked for."""
    if backbones and not any(_can_have_size(study, backbone) for backbone in backbones):
        others = f", and {len(backbones) - 1} more do not take it" if len(backbones) > 1 else ""
        advice = "leave it out, or name other backbones with --backbones"
        raise StudyError(f"--image-size {study.image_size}: {_only(backbones[0])}{others}; {advice}")


def _can_have_size(study: Study, backbone: Backbone) -> bool:
    return study.image_size == 0 or backbone.input.takes(study.image_size)


def _only(backbone: Backbone) -> str:
    spec = backbone.input
    return f"{backbone.name} takes {f'multiples of {spec.size_step}' if spec.size_step else spec.size} px only"


def _among(backbones: list[Backbone], others: list[Backbone]) -> list[Backbone]:
    names = {backbone.name for backbone in others}
    return [backbone for backbone in backbones if backbone.name in names]


def _some(backbones: list[Backbone]) -> str:
    more = f" and {len(backbones) - 3} more" if len(backbones) > 3 else ""
    return f"{', '.join(backbone.name for backbone in backbones[:3])}{more}"


def _affordable(
    study: Study, backbones: list[Backbone], given: list[Backbone], machine: Machine, workload: Workload
) -> list[Backbone]:
    """The best whose probes together fit into their share of the time; the cheapest one always does.

    Best are those that the user gave, then those whose weights are here, then those of a high prior.
    """

    def rank(backbone: Backbone) -> tuple[bool, bool, float]:
        return (backbone not in given, backbone.weights != "local", -(backbone.prior or 0.0))

    budget = study.time * PROBE_SHARE * WORK_PER_SECOND[machine.device] * machine.sure
    chosen: list[Backbone] = []
    for backbone in sorted(backbones, key=rank):
        size = choose_size(study, backbone.input, workload.side)
        work = forward_work(_cost(backbone, size)) * workload.images
        if work <= budget and len(chosen) < MOST_BACKBONES:
            chosen.append(backbone)
            budget -= work
    return chosen or sorted(backbones, key=lambda backbone: (backbone.weights != "local", backbone.parameters))[:1]


def _fetched(study: Study, host: Host, backbones: list[Backbone], screen: Screen, check: Check) -> list[Backbone]:
    """The backbones whose weights are here or could be downloaded; `check` may raise to give up a download.

    After one failure a zoo is not asked again, unless the user named the backbones.
    """
    available: list[Backbone] = []
    unreachable: dict[str, list[str]] = {}
    for backbone in backbones:
        zoo = backbone.name.split("/")[0]
        if backbone.weights == "local":
            available.append(backbone)
        elif zoo in unreachable and not study.backbones:
            unreachable[zoo].append(backbone.name)
        else:
            try:
                in_thread(partial(host.build, backbone), check)
                available.append(backbone)
            except BackboneUnavailable as problem:
                unreachable[zoo] = []
                screen.note(f"skipped: {problem}")
    for names in unreachable.values():
        if names:
            screen.note(f"skipped after that failure: {', '.join(names)}; --offline does not try")
    return available


def _nothing_left(study: Study, asked: list[Backbone], allowed: list[Backbone], wanted: list[Backbone]) -> str:
    """Which of the filters, in the order in which they were applied, left no backbone, and what lets some pass."""
    if not asked:
        return "no zoo recommends a backbone; name some with --backbones (autoft backbones lists them)"
    named = f"--backbones {','.join(study.backbones)}" if study.backbones else "what the zoos recommend"
    nothing = f"{named} leaves nothing that can be used here"
    if not allowed:
        found = sorted({backbone.license for backbone in asked})
        return (
            f"{nothing}: --licenses {','.join(study.licenses)} allows none of {_some(asked)}; allow "
            f"{first_names(found)}, or any"
        )
    install = "install some that come with theirs: pip install autoft-lite"
    if not wanted:
        return (
            f"{nothing}: --offline, and the weights of {_some(allowed)} are not on this machine; drop it, or {install}"
        )
    return f"{nothing}: no weights could be had, see the lines above; {install}"
