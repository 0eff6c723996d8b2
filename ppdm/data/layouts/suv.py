"""Standardised uptake values (SUV) of PET: the factor of a scan, and a table of weights and doses to compute it."""

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from ppdm.data.csv_table import CsvTable, TableError, read_table
from ppdm.data.volume import user_path

F18_HALF_LIFE_S = 6586.2
"""Half-life of fluorine-18, 109.77 min (ENSDF, D.R. Tilley et al. 1995). NUBASE2020 has 109.734 min, and scanners
write up to 6588 s: their factors after two hours differ from those with this value by less than 0.04 %."""

COLUMNS = ("subject", "weight_kg", "dose_bq", "minutes")
OPTIONAL_COLUMNS = ("session", "half_life_min")

_LEAST_DOSE_BQ = 1e4  # no injection for imaging has less; a smaller number is probably in MBq


class SUVError(ValueError):
    """A factor or a table of doses is invalid; the message gives the number and what was expected."""


def suv_factor(weight_kg: float, dose_bq: float, seconds: float, half_life_s: float = F18_HALF_LIFE_S) -> float:
    """Factor from Bq/mL to body-weight SUV (g/mL): 1000·weight / (dose·0.5^(seconds/half-life)).

    For images that are decay-corrected to the start of the acquisition (DecayCorrection START in DICOM).

    Args:
        weight_kg: body weight.
        dose_bq: injected activity at the time of injection.
        seconds: time from the injection to the reference time of the decay correction; 0 if that is the injection.
        half_life_s: half-life of the radionuclide; fluorine-18 by default.

    Returns:
        The factor, g/Bq: SUV = stored value · factor.

    Raises:
        SUVError: a number is not finite or not positive (0 s is allowed), or the factor overflows floating point.
    """
    for name, value in (("weight_kg", weight_kg), ("dose_bq", dose_bq), ("half_life_s", half_life_s)):
        if not (math.isfinite(value) and value > 0):
            raise SUVError(f"{name} is {value}, expected a positive number.")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise SUVError(f"seconds is {seconds}, expected the time since injection, 0 or more.")
    left = dose_bq * 0.5 ** (seconds / half_life_s)
    if not (left > 0 and math.isfinite(1000 * weight_kg / left)):
        raise SUVError(f"after {seconds} s no activity is left of {dose_bq} Bq; check the unit of the time.")
    return 1000 * weight_kg / left


@dataclass(frozen=True)
class SUVTable:
    """The factors of the rows of a table.

    Attributes:
        factors: the factor of each (subject, session); the session is empty if the table gives none.
    """

    factors: Mapping[tuple[str, str], float]

    def factor(self, subject: str, session: str = "", sessions: int = 1) -> float | None:
        """Return the factor of one visit of a subject with `sessions` visits, or None if the table has no matching row.

        A row without a session applies only to a subject with one visit, since it cannot distinguish injections.
        """
        alone = self.factors.get((subject, "")) if sessions == 1 else None
        return self.factors.get((subject, session), alone)


def read_suv_table(path: str | os.PathLike[str]) -> SUVTable:
    """Read a CSV file `subject,weight_kg,dose_bq,minutes[,half_life_min][,session]`; minutes count from the injection.

    The default half-life is that of fluorine-18. Each injection needs its own row. If a subject has several visits,
    give the session as the layout finds it.

    Raises:
        SUVError: the file cannot be read, or has faults; the message lists all of them with their lines.
    """
    path = user_path(path)
    try:
        table = read_table(path, COLUMNS, "table of weights and doses")
    except TableError as error:
        raise SUVError(str(error)) from None
    faults = [*table.faults_of_header(COLUMNS, OPTIONAL_COLUMNS), *filter(None, [table.fault])]
    for remark in table.near_names(COLUMNS, OPTIONAL_COLUMNS):
        warnings.warn(f"{path}: {remark}", stacklevel=2)
    factors: dict[tuple[str, str], float] = {}
    for line, cells in [] if faults else table.rows:
        try:
            visit, factor = _row(table, cells)
            if visit in factors:
                raise SUVError(f"{' '.join(visit).strip()} is there twice; keep one row, or name sessions.")
            factors[visit] = factor
        except SUVError as fault:
            faults.append(f"line {line}: {fault}")
    if not (faults or factors):
        faults = ["it has a header but no rows"]
    if faults:
        raise SUVError("\n  ".join([f"{path} cannot be used:", *faults]))
    return SUVTable(factors)


def _row(table: CsvTable, row: list[str]) -> tuple[tuple[str, str], float]:
    try:
        cells = table.row(row)
    except ValueError as error:
        raise SUVError(str(error)) from None
    dose = _number(table, cells, "dose_bq")
    if 0 < dose < _LEAST_DOSE_BQ:
        raise SUVError(f"dose_bq is {dose:g}, less than any injection; write Bq (1 MBq is 1e6)")
    half_life = _number(table, cells, "half_life_min") * 60 if cells.get("half_life_min") else F18_HALF_LIFE_S
    factor = suv_factor(_number(table, cells, "weight_kg"), dose, _number(table, cells, "minutes") * 60, half_life)
    if not cells["subject"]:
        raise SUVError("subject is empty")
    return (cells["subject"], cells.get("session", "")), factor


def _number(table: CsvTable, cells: dict[str, str], column: str) -> float:
    try:
        return table.number(cells[column])
    except ValueError:
        raise SUVError(f"{column} is {cells[column]!r}, expected a number") from None
