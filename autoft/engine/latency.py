"""`--max-latency`: which networks are too slow to hand over, by what the run has measured."""

from __future__ import annotations

from typing import Final

from autoft.bundle.standalone.verify import machine_name
from autoft.study.machine import cores
from autoft.study.run import Run
from autoft.system.files import write_atomic
from autoft.values.codec import decode, encode
from autoft.values.counts import milliseconds
from autoft.values.latency import Latencies, network_name, refusal
from autoft.values.ledger import Ledger
from autoft.values.trial import Network

# What the forward pass of a probe, in a batch, leaves an exported network at the least for one image: onnxruntime is up
# to so many times as quick as torch, and one image keeps no more than so many cores busy.
MOST_QUICKER: Final = 2.0
MOST_CORES: Final = 8


def too_slow(run: Run, ledger: Ledger) -> dict[Network, str]:
    """The networks of the run that are above `--max-latency`, and how that is known; none without such a limit.

    By the exported file where an earlier end has measured that here; else where the least that the probe's forward pass
    leaves it is above. One on a GPU says nothing of that.
    """
    most = run.record.study.max_latency
    if most is None:
        return {}
    measured, slow = _measured_here(run).measured, {}
    for network in {(one.backbone, one.image_size) for one in run.record.candidates}:
        found, least = measured.get(network_name(network)), _least_milliseconds(run, ledger, network)
        if found is not None and found > most:
            slow[network] = refusal(network, f"takes {milliseconds(found)}", most)
        elif found is None and least > most:
            slow[network] = refusal(network, f"would take {milliseconds(least)} or more", most)
    return slow


def remember(run: Run, network: Network, found: float) -> None:
    """Keep how many milliseconds an image takes the exported network here. Raises as `Run.writing` does."""
    known = _measured_here(run)
    with run.writing(run.folder.latencies):
        now = Latencies(known.machine, {**known.measured, network_name(network): found})
        write_atomic(run.folder.latencies, encode(now))


def _least_milliseconds(run: Run, ledger: Ledger, network: Network) -> float:
    machine, seconds = run.record.machine, ledger.image_seconds(*network)
    if seconds is None or machine.device != "cpu":
        return 0.0
    return 1000 * seconds * machine.threads / (min(cores(), MOST_CORES) * MOST_QUICKER)


def _measured_here(run: Run) -> Latencies:
    """What was measured on this machine; nothing where the file cannot be read: it will be measured again."""
    here = Latencies(machine_name(), {})
    try:
        kept = decode(Latencies, run.folder.latencies.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return here
    return kept if kept.machine == here.machine else here
