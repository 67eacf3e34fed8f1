"""`autoft backbones`, `autoft plugins` and `autoft doctor`: what there is to work with."""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import click

from autoft.errors import unknown_name
from autoft.shell.commands import (
    Command,
    aligned,
    document,
    json_option,
    plugin_option,
    say,
    split_list,
    talk_on_stderr,
)
from autoft.values.counts import counted

if TYPE_CHECKING:
    from autoft.values.backbone import Backbone, InputSpec


@click.command(
    cls=Command,
    examples=(
        "autoft backbones --local",
        "autoft backbones 'timm/convnext_*' --licenses permissive",
        "autoft backbones 'lite/*' --json",
    ),
)
@click.argument("globs", metavar="[GLOB]...", nargs=-1)
@click.option(
    "--local", "--offline", "local", is_flag=True, help="Only those a search --offline can use: weights are here."
)
@click.option("--licenses", multiple=True, metavar="SPDX,...", help="Only these, or permissive.  [default: any]")
@plugin_option
@json_option
def backbones(
    globs: tuple[str, ...], local: bool, licenses: tuple[str, ...], plugins: tuple[str, ...], as_json: bool
) -> None:
    """List the backbones that can be searched.

    GLOB selects by name. Best first, by ImageNet top-1 or what a zoo expects in its place, which is known before any
    search. GMACs are billions of multiply-adds an image of that many px. The last column says what is searched without
    --backbones, where it fits the time.
    """
    from autoft.parts.host import Host
    from autoft.study.shortlist import recommended
    from autoft.study.study import licence_allowed

    with talk_on_stderr():
        host = Host.discover(plugins)
        host.check()
        known = host.backbones()
    for warning in host.warnings():
        click.echo(warning, err=True)
    allowed = tuple(map(str.lower, split_list(licenses))) or ("any",)
    places = ("local",) if local else ("local", "download")
    selected = [
        backbone
        for backbone in _named(globs, known)
        if licence_allowed(backbone.license, allowed) and backbone.weights in places
    ]
    selected.sort(key=lambda backbone: -(backbone.prior or 0.0))
    if as_json:
        say(document("backbones", selected))
        return
    header = ("name", "top-1", "GMACs", "parameters", "px", "licence", "weights", "searched")
    unasked = {backbone.name for backbone in recommended(host, known)}
    say(aligned(header, [_cells(backbone, unasked) for backbone in selected]))
    click.echo(f"{len(selected)} of {counted(len(known), 'backbone')}", err=True)


def _named(globs: Sequence[str], known: Sequence[Backbone]) -> list[Backbone]:
    """What the globs select, all without any. Raises `StudyError` for one that selects nothing."""
    names = [backbone.name for backbone in known]
    for pattern in globs:
        if not fnmatch.filter(names, pattern):
            raise unknown_name("backbone", pattern, names)
    return [b for b in known if not globs or any(fnmatch.fnmatchcase(b.name, pattern) for pattern in globs)]


def _size(spec: InputSpec) -> str:
    """The size of training, and which others there are."""
    if spec.size_step:
        return f"{spec.size}, by {spec.size_step}"
    return f"{spec.size} only" if spec.fixed_size else str(spec.size)


def _figure(value: float, places: int) -> str:
    """To so many places; to two digits where a small network would have none but zeros."""
    return f"{value:.{places}f}" if value >= 10**-places else f"{value:.2g}"


def _cells(backbone: Backbone, unasked: Container[str]) -> tuple[str, ...]:
    return (
        backbone.name,
        "" if backbone.prior is None else f"{backbone.prior:.3f}",
        "" if backbone.gmacs is None else _figure(backbone.gmacs, 2),
        f"{_figure(backbone.parameters / 1e6, 1)} M",
        _size(backbone.input),
        backbone.license,
        backbone.weights,
        "by default" if backbone.name in unasked else "when named",
    )


@click.command(
    cls=Command,
    examples=(
        "autoft plugins",
        "autoft plugins -p mine.py           try one that is not installed",
        "autoft plugins --json               with the traceback of those that failed",
    ),
)
@plugin_option
@json_option
def plugins(plugins: tuple[str, ...], as_json: bool) -> None:
    """List the plugins, and what each adds.

    Exit code 2 when a search would refuse to begin with them; what is given with -p is asked for backbones and spaces
    as a search does. AUTOFT_DISABLE_PLUGINS=a,b switches some off for good.
    """
    from autoft.parts.host import Host

    with talk_on_stderr():
        host = Host.discover(plugins)
        table = host.table()
    if as_json:
        say(document("plugins", table))
    else:
        rows = [
            (
                line.name,
                line.version or "",
                line.distribution or line.kind,
                line.status,
                line.cause or _joined(line.adds),
            )
            for line in table
        ]
        say(aligned(("name", "version", "from", "status", "adds"), rows))
    shown = [line.cause for line in table if line.cause]
    for warning in host.warnings():
        if not any(cause in warning for cause in shown):
            click.echo(warning, err=True)
    host.check()


def _joined(adds: Sequence[str]) -> str:
    return ", ".join(adds)


@click.command(
    cls=Command,
    examples=(
        "autoft doctor",
        "autoft doctor --quick               without importing torch",
        "autoft doctor --json",
    ),
)
@click.option("--quick", is_flag=True, help="Leave out the network, and what needs torch, timm, ray or onnx imported.")
@json_option
def doctor(quick: bool, as_json: bool) -> None:
    """Check this machine and say how to mend what is wrong.

    Exit code 1 when a check failed; warnings do not count.
    """
    from autoft.shell.doctor import FULL, QUICK

    with talk_on_stderr():
        checks = [check() for check in (QUICK if quick else FULL)]
    if as_json:
        say(document("checks", checks))
    else:
        say(aligned(("check", "status", "detail"), [(check.name, check.status, check.detail) for check in checks]))
        for check in checks:
            if check.fix:
                click.echo(f"{check.name}: {check.fix}", err=True)
    if any(check.status == "fail" for check in checks):
        click.get_current_context().exit(1)
