"""A report as tables in Markdown, to be read on a terminal too."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.machine import QUIET
from benchmarks.report import NESTED, SCRIPT, SSHREC, Report

Cell = Callable[[Report, str], str | None]
NONE = "–"


@dataclass(frozen=True, slots=True)
class Budget:
    """What sshrec may cost. `value` and `allowed`: as they are compared; None where it was not measured."""

    what: str
    allowed_text: str
    unit: str
    value: Callable[[Report], float | None]
    allowed: Callable[[Report], float | None]
    at_least: bool = False


def render(report: Report) -> str:
    """All tables that there are samples for, and what a reader must know beside them."""
    parts = [_preamble(report)]
    for title, columns in _TABLES:
        rows = [[name, *(cell(report, name) or NONE for _, cell in columns)] for name in report.contenders]
        rows = [row for row in rows if any(cell != NONE for cell in row[1:])]
        if rows:
            parts.append(f"### {title}\n\n{_grid(['', *(head for head, _ in columns)], rows)}")
    rows = [row for budget in BUDGETS if (row := _held(report, budget))]
    if rows:
        heads = ["sshrec with its defaults", "allowed", "that is", "measured", ""]
        parts.append(f"### Budgets\n\n{_grid(heads, rows)}")
    failures = [[name, what, why] for name, of in report.failures.items() for what, why in of.items()]
    if failures:
        parts.append(f"### What failed\n\n{_grid(['', 'at', 'why'], failures)}")
    return "\n\n".join(parts) + "\n"


# ---- cells -------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(figure: str) -> Cell:
    def cell(report: Report, name: str) -> str | None:
        values = report.get(name, figure)
        median = report.median(name, figure)
        if median is None:
            return None
        if len(values) == 1:
            return _number(median)
        return f"{_number(median)} ({_number(min(values))}–{_number(max(values))})"

    return cell


def _median(figure: str) -> Cell:
    def cell(report: Report, name: str) -> str | None:
        median = report.median(name, figure)
        return None if median is None else _number(median)

    return cell


def _percentile(figure: str, percent: float) -> Cell:
    def cell(report: Report, name: str) -> str | None:
        value = report.percentile(name, figure, percent)
        return None if value is None else f"{value:.3f}"

    return cell


def _ratio(figure: str, to: str) -> Cell:
    def cell(report: Report, name: str) -> str | None:
        ratio = report.ratio(name, figure, to)
        return None if ratio is None else f"{ratio:.2f}"

    return cell


def _yes(*figures: str) -> Cell:
    def cell(report: Report, name: str) -> str | None:
        values = [value for figure in figures for value in report.get(name, figure)]
        return None if not values else "yes" if all(values) else "no"

    return cell


Columns = Sequence[tuple[str, Cell]]


def _against(head: str, figure: str, *others: str) -> Columns:
    return [(head, _spread(figure)), *((f"× {other}", _ratio(figure, other)) for other in others)]


_TABLES: Sequence[tuple[str, Columns]] = (
    (
        "Session start: the client's whole life with `true` as command, ms",
        [
            *_against("terminal", "start_terminal", NESTED, SCRIPT),
            *_against("no terminal", "start_command", NESTED),
        ],
    ),
    (
        "Terminal output, MB/s at the client",
        [
            *_against("text", "text_speed", NESTED, SCRIPT),
            *_against("ANSI and UTF-8", "ansi_speed", NESTED, SCRIPT),
        ],
    ),
    (
        "Commands without a terminal, random bytes, MB/s",
        [
            *_against("from the target", "down_speed", NESTED),
            *_against("to the target", "up_speed", NESTED),
            ("identical", _yes("identical_down", "identical_up")),
        ],
    ),
    (
        "Keystroke echo, ms",
        [
            ("p50", _percentile("echo", 50)),
            ("p95", _percentile("echo", 95)),
            ("p99", _percentile("echo", 99)),
            ("p50 × nested", _ratio("echo", NESTED)),
            ("p50 × script", _ratio("echo", SCRIPT)),
        ],
    ),
    (
        "CPU on the bastion, seconds per 100 MB of output",
        [
            ("text: recorder", _median("text_cpu_recorder")),
            ("ssh", _median("text_cpu_ssh")),
            ("sshd", _median("text_cpu_sshd")),
            ("afterwards", _median("text_after")),
            ("ANSI: recorder", _median("ansi_cpu_recorder")),
            ("ssh", _median("ansi_cpu_ssh")),
            ("sshd", _median("ansi_cpu_sshd")),
            ("afterwards", _median("ansi_after")),
            ("command: recorder", _median("down_cpu_recorder")),
            ("afterwards", _median("down_after")),
        ],
    ),
    (
        "Memory on the bastion, MiB (PSS) for each idle session, and for sshrecd once",
        [
            ("recorder", _median("memory_recorder")),
            ("ssh", _median("memory_ssh")),
            ("sshd", _median("memory_sshd")),
            ("sshrecd", _median("memory_daemon")),
        ],
    ),
    (
        "Disk, bytes kept for a byte of output; and whether the exit status arrives",
        [
            ("text", _median("text_disk")),
            ("ANSI and UTF-8", _median("ansi_disk")),
            ("status, terminal", _yes("status_terminal")),
            ("status, no terminal", _yes("status_command")),
        ],
    ),
)


# ---- budgets -----------------------------------------------------------------------------------------


def _of(name: str, figure: str, factor: float = 1, plus: float = 0) -> Callable[[Report], float | None]:
    def value(report: Report) -> float | None:
        median = report.median(name, figure)
        return None if median is None else median * factor + plus

    return value


def _fixed(value: float) -> Callable[[Report], float | None]:
    return lambda _report: value


BUDGETS: tuple[Budget, ...] = (
    *(
        Budget(f"session start, {what}", "nested + 5 ms", "ms", _of(SSHREC, figure), _of(NESTED, figure, plus=5))
        for what, figure in (("terminal", "start_terminal"), ("no terminal", "start_command"))
    ),
    *(
        Budget(
            f"terminal output, {what}", "nested", "MB/s", _of(SSHREC, figure), _of(NESTED, figure), at_least=True
        )
        for what, figure in (("text", "text_speed"), ("ANSI", "ansi_speed"))
    ),
    *(
        Budget(
            f"command, {what} the target",
            "0.95 of nested",
            "MB/s",
            _of(SSHREC, figure),
            _of(NESTED, figure, 0.95),
            at_least=True,
        )
        for what, figure in (("from", "down_speed"), ("to", "up_speed"))
    ),
    Budget("keystroke echo, p50", "script", "ms", _of(SSHREC, "echo"), _of(SCRIPT, "echo")),
    Budget("memory of an idle session", "6 MiB", "MiB", _of(SSHREC, "memory_recorder"), _fixed(6)),
    *(
        Budget(f"CPU for 100 MB, {what}", "0.5 s", "s", _of(SSHREC, figure), _fixed(0.5))
        for what, figure in (
            ("text", "text_cpu_recorder"),
            ("text, afterwards", "text_after"),
            ("ANSI", "ansi_cpu_recorder"),
            ("ANSI, afterwards", "ansi_after"),
        )
    ),
    Budget("disk, text", "0.4", "", _of(SSHREC, "text_disk"), _fixed(0.4)),
    Budget("disk, ANSI", "0.25", "", _of(SSHREC, "ansi_disk"), _fixed(0.25)),
)


def _held(report: Report, budget: Budget) -> list[str] | None:
    value, allowed = budget.value(report), budget.allowed(report)
    if value is None or allowed is None:
        return None
    held = value >= allowed if budget.at_least else value <= allowed
    bound = "at least" if budget.at_least else "at most"
    numbers = [f"{number:.3f}" if number < 1 else _number(number) for number in (allowed, value)]
    shown = [f"{number} {budget.unit}".strip() for number in numbers]
    return [budget.what, f"{bound} {budget.allowed_text}", *shown, "held" if held else "**missed**"]


# ---- text --------------------------------------------------------------------------------------------


def _preamble(report: Report) -> str:
    machine = "; ".join(f"{name}: {value}" for name, value in report.machine.items())
    settings = ", ".join(f"{value} {name}" for name, value in report.settings.items())
    lines = [f"{report.date}, {report.seconds:.0f} s. {machine}.", ""]
    lines += [f"Up to {settings}. Median (least–most)."]
    loud = sum(load > QUIET for load in report.load)
    if report.load:
        lines.append(
            f"Others used {max(report.load):.0%} of the CPUs at most before a round, and more than {QUIET:.0%} "
            f"before {loud} of {len(report.load)}."
        )
    if not report.awake:
        lines.append("Idle CPUs could halt: on a virtual machine, most of an echo is waking them.")
    for name, program in report.left_out.items():
        lines.append(f"Left out: {name}, because {program} is not installed.")
    lines += ["", *(f"* **{name}**: {what}" for name, what in report.contenders.items())]
    return "\n".join(lines)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [list(heads), *(list(row) for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell + pad if number == 0 else pad + cell
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            for pad in (" " * (width - _width(cell)),)
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (width + 2) if number == 0 else "-" * (width + 1) + ":" for number, width in enumerate(widths)
    )
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
