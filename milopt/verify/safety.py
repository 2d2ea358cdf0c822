"""Is a rewritten program as near to the original's algebra as the original is, in precisions that round?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from milopt.interpreter import Precision
from milopt.metrics import Lossy
from milopt.verify.driving import Listening, Observed
from milopt.verify.locating import Fingerprints, excerpt, first_parting
from milopt.verify.measuring import Meter
from milopt.verify.pairing import Pair
from milopt.verify.trials import Trial
from milopt.verify.verdict import Difference, FirstValue, Safety

__all__ = ["judged_safe"]

# The roundings of a few layers in fp16 leave 50 to 70 dB. An overflow that reaches an output leaves less than 20.
_ENOUGH_DB = 40.0
# A rewrite may round twice as coarsely as the original did.
_MARGIN_DB = 6.0


def judged_safe(
    pair: Pair, precision: Precision, tried: Sequence[tuple[Trial, list[Observed]]]
) -> tuple[list[Safety], Difference | None]:
    """How near both programs, run in ``precision``, come to what the original gives in float64.

    ``tried`` are trials with the original's float64 results. The difference is that of the first output of the program
    after which is neither within 40 dB nor about as near as that of the program before.
    """
    rounded = replace(pair, old=pair.old.rounded[precision], new=pair.new.rounded[precision])
    found: list[Safety] = []
    for trial, expected in tried:
        with rounded.old.weights.lent():
            before = _measured(pair, trial, expected, rounded.run_old(trial))
        with rounded.new.weights.lent():
            after = _measured(pair, trial, expected, rounded.run_new(trial))
            for name, meter in after.items():
                was, now = before[name].measured().snr_db, meter.measured().snr_db
                if was is None or now is None:  # no number
                    continue
                found.append(Safety(precision, trial.label, name, was, now))
                if now < min(_ENOUGH_DB, was - _MARGIN_DB):
                    return found, _located(pair, rounded, trial, meter, found[-1])
    return found, None


def _measured(pair: Pair, trial: Trial, expected: Sequence[Observed], seen: Sequence[Observed]) -> Mapping[str, Meter]:
    meters: dict[str, Meter] = {}
    for call, (exact, rounded) in enumerate(zip(expected, seen, strict=True)):
        for name, value in exact.items():
            if name not in pair.old.argmax.get(trial.calls[0].function, ()):
                meters.setdefault(name, Meter(name)).add(0, call, value, rounded[name])
    return meters


def _located(pair: Pair, rounded: Pair, trial: Trial, meter: Meter, safety: Safety) -> Difference:
    """The output's worst entry, and the first value of the program after that rounding takes far from its float64."""
    metric = Lossy(_ENOUGH_DB)
    where = meter.place(metric)
    call = min(where.call if where is not None else 0, len(trial.calls) - 1)
    heard = Fingerprints(ordered=True), Fingerprints(ordered=True)
    with pair.new.weights.lent():
        pair.run_new(trial, Listening(call, heard[0]))
    rounded.run_new(trial, Listening(call, heard[1]))
    parting = first_parting(*heard, metric)
    first = None if parting is None else FirstValue(parting[0][0], parting[1])
    function = trial.calls[call].function
    name = first.name if first is not None else safety.output
    return Difference(
        f"in {safety.precision} it has {safety.after_db:.1f} dB against the original in float64, "
        f"{safety.before_db:.1f} dB before",
        None if where is None else replace(where, output=safety.output),
        trial.label,
        first,
        excerpt(pair.old.plans[function], pair.old.opsets[function], name),
        excerpt(pair.new.plans[function], pair.new.opsets[function], name),
    )
