"""Standardised uptake values of PET by body weight: SUV = activity per ml x body weight in g / injected activity.

The injected activity is taken at the time to which the image is decay-corrected (QIBA's vendor-neutral computation):
for DecayCorrection START the start of the series or, if that was rewritten, of the acquisition; for ADMIN the
injection.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

PHILIPS_FACTOR = (0x7053, 0x1000)  # SUV per count, private


def standardised(dataset: Any, name: str) -> tuple[float, str]:
    """(the factor from the file's values to SUV, 1 if unknown; a sentence about what was done)."""
    unit = str(dataset.get("Units") or "")
    if unit == "GML":
        return 1.0, f"{name} is a PET image in SUV (g/ml)."
    if unit == "CNTS" and (factor := _positive(_value(dataset, PHILIPS_FACTOR))):
        return factor, f"{name} is a PET image in counts, converted to SUV by the scanner's factor {factor:.4g}."
    if unit != "BQML":
        return (
            1.0,
            f"{name} is a PET image in {unit or 'an unknown unit'}, without an SUV; its values are kept.",
        )
    missing, weight = [], _positive(dataset.get("PatientWeight"))
    if not weight:
        missing.append("the patient's weight")
    drug: Any = next(iter(dataset.get("RadiopharmaceuticalInformationSequence") or []), {})
    dose, half_life = (_positive(drug.get(f"Radionuclide{what}")) for what in ("TotalDose", "HalfLife"))
    if not dose:
        missing.append("the injected dose")
    correction = str(dataset.get("DecayCorrection") or "")
    elapsed = 0.0 if correction == "ADMIN" else _elapsed(dataset, drug) if correction == "START" else None
    if elapsed is None or (elapsed and not half_life):
        missing.append("the decay correction or its times")
    if missing or not weight or not dose or elapsed is None:
        return 1.0, f"{name} is a PET image in Bq/ml and stays so, since its header lacks {', '.join(missing)}."
    left = dose * math.exp(-math.log(2) * elapsed / half_life) if half_life else dose
    return 1000 * weight / left, (
        f"{name} is a PET image in Bq/ml, converted to SUV by body weight ({weight:g} kg, {dose / 1e6:.4g} MBq, "
        f"decayed for {elapsed / 60:.3g} min)."
    )


def _elapsed(dataset: Any, drug: Any) -> float | None:
    """Seconds from the injection to the start of the scan, or None."""
    series, acquired = _time(dataset, "Series"), _time(dataset, "Acquisition")
    start = acquired if series is None or (acquired is not None and acquired < series) else series
    injected = _parsed(str(drug.get("RadiopharmaceuticalStartDateTime") or ""))
    if start is None:
        return None
    if injected is None:
        clock = str(drug.get("RadiopharmaceuticalStartTime") or "")
        injected = _parsed(f"{start:%Y%m%d}{clock}") if clock else None
        if injected is not None and injected > start:  # before midnight
            injected -= timedelta(days=1)
    if injected is None:
        return None
    elapsed = (start - injected).total_seconds()
    return elapsed if 0 <= elapsed < 86400 else None


def _time(dataset: Any, what: str) -> datetime | None:
    return _parsed(f"{dataset.get(f'{what}Date') or ''}{dataset.get(f'{what}Time') or ''}")


def _parsed(text: str) -> datetime | None:
    """A DICOM date and time, YYYYMMDDHHMMSS, ignoring fractions and time zone; None if invalid."""
    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _value(dataset: Any, tag: tuple[int, int]) -> Any:
    return dataset[tag].value if tag in dataset else None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None
