"""`--max-latency`: which networks are too slow to hand over, by what the run has measured."""

from __future__ import annotations

import platform
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from autoft.study.machine import cores
from autoft.system.files import write_atomic
from autoft.values.codec import decode, encode
from autoft.values.counts import counted, milliseconds
from autoft.values.latency import Latencies, network_name, refusal
from autoft.values.ledger import Ledger
from autoft.values.trial import Network

if TYPE_CHECKING:
    from autoft.study.run import Run

# What the forward pass of a probe, in a batch, leaves an exported network at the least for one image: onnxruntime is up
# to twice as quick as torch, and another half of it may have been lost to what else ran beside the probe. No network
# makes use of more cores than so many, with few images at a time.
MOST_QUICKER: Final = 4.0
MOST_CORES: Final = 8


def too_slow(run: Run, ledger: Ledger) -> dict[Network, str]:
    """The networks of the run that are above `--max-latency`, and how that is known; none without such a limit.

    By the exported file where an earlier end has measured that here; else where the least that the probe's forward pass
    leaves it is above. One on a GPU says nothing of that, nor do those of a machine that was shared out otherwise.
    """
    most = run.record.study.max_latency
    if most is None:
        return {}
    measured, slow = _measured_here(run).measured, {}
    for network in {one.network for one in run.record.candidates}:
        found, least = measured.get(network_name(network)), _least_milliseconds(run, ledger, network)
        if found is not None and found > most:
            slow[network] = refusal(network, f"takes {milliseconds(found)}", most)
        elif found is None and least > most:
            slow[network] = refusal(network, f"would take {milliseconds(least)} or more", most)
    return slow


def beyond_the_limit(run: Run) -> str:
    """What can be done where all that a run has is above its `--max-latency`."""
    export = f"autoft export {shlex.quote(str(run.folder.path))}"
    ways = f"`{export}` times them again, `{export} --trial N` hands one over all the same"
    return f"{ways}, and a new search with a larger --max-latency finds others"


def remember(run: Run, network: Network, found: float) -> None:
    """Keep how many milliseconds an image takes the exported network here, the least that was measured.

    A run that cannot be written is exported elsewhere all the same: what is not kept is measured again.
    """
    known, name = _measured_here(run), network_name(network)
    now = Latencies(known.machine, {**known.measured, name: min(found, known.measured.get(name, found))})
    with suppress(OSError):
        write_atomic(run.folder.latencies, encode(now))


def _least_milliseconds(run: Run, ledger: Ledger, network: Network) -> float:
    machine, seconds = run.record.machine, ledger.image_seconds(*network)
    is_as_measured = machine == (run.opened or run.record).machine and machine.device == "cpu"
    if seconds is None or not is_as_measured:
        return 0.0
    threads = min(machine.threads, machine.cpus, MOST_CORES)
    return 1000 * seconds * threads / (min(cores(), MOST_CORES) * MOST_QUICKER)


def _measured_here(run: Run) -> Latencies:
    """What was measured on this machine; nothing where the file cannot be read: it will be measured again."""
    here = Latencies(f"{platform.node()}, {platform.machine()}, {counted(cores(), 'core')}", {})
    try:
        kept = decode(Latencies, run.folder.latencies.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return here
    return kept if kept.machine == here.machine else here
