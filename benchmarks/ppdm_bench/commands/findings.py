"""Output of ``data check``: the result for each pair as text or as JSON values."""

from typing import Any

from ppdm.data.checking import Findings, Report
from ppdm_bench.units import plural, shape_text


def findings_text(findings: Findings) -> str:
    """Return the findings as text: one line per pair, its faults and remarks below it, and their numbers at the end."""
    lines = [f"fault: {fault}" for fault in findings.faults]
    for report in findings.reports:
        lines.append(_line(report))
        lines += [f"  fault: {fault}" for fault in report.faults]
        lines += [f"  remark: {remark}" for remark in report.remarks]
    faults = len(findings.faults) + sum(len(report.faults) for report in findings.reports)
    remarks = sum(len(report.remarks) for report in findings.reports)
    sound = sum(report.sound for report in findings.reports)
    counts = f"{plural(faults, 'fault')}, {plural(remarks, 'remark')}"
    return "\n".join([*lines, f"{sound} of {plural(len(findings.reports), 'pair')} sound; {counts}"])


def findings_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return the findings as JSON values: one row per pair, after a row for faults of the manifest itself."""
    whole = [{"subject": None, "faults": list(findings.faults)}] if findings.faults else []
    return whole + [
        {
            "subject": report.subject,
            "split": report.split,
            "shape": report.shape,
            "spacing": report.spacing,
            "source_range": report.source_range,
            "target_range": report.target_range,
            **_ranges(report),
            "faults": list(report.faults),
            "remarks": list(report.remarks),
        }
        for report in findings.reports
    ]


def _line(report: Report) -> str:
    words = ["ok   " if report.sound else "FAULT", report.subject, f"({report.split})"]
    if report.shape and report.spacing:
        words += [shape_text(report.shape), f"{'×'.join(f'{mm:.3g}' for mm in report.spacing)} mm"]
    words += [f"{name} {scan.low:.4g} to {scan.high:.4g}" for name, scan in report.scans.items() if scan]
    return "  ".join(words)


def _ranges(report: Report) -> dict[str, Any]:
    """Return the smallest and the largest value of each source by its name, if there are several sources."""
    if len(report.sources) == 1:
        return {}
    return {"source_ranges": {name: scan and (scan.low, scan.high) for name, scan in report.sources.items()}}
