"""Medians, intervals, ratios, and tables of them."""
import math
import statistics


def interval(values):
    """A distribution-free interval of the median from order statistics, at least 95 % where the
    number of values allows it (6 and more), else all of them. Returns (low, high, coverage)."""
    ordered, n = sorted(values), len(values)
    best = (ordered[0], ordered[-1], 1 - 2 * 0.5 ** n)
    for k in range(1, n // 2):
        coverage = 1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n
        if coverage < 0.95:
            break
        best = (ordered[k], ordered[n - 1 - k], coverage)
    return best


def median(values):
    return statistics.median(values)


def number(x, digits=3):
    """Three significant digits, without an exponent."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return "–"
    if x == 0:
        return "0"
    return f"{x:,.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}".replace(",", " ")


def spread(values, unit=""):
    low, high, _ = interval(values)
    text = number(median(values)) + unit
    return text if len(values) == 1 else f"{text} [{number(low)}, {number(high)}]"


def ratios(ours, theirs):
    """Of pairs measured one after the other in the same round."""
    return [a / b for a, b in zip(ours, theirs)]


def text_table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]

    def line(row):
        return "  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w)
                         for i, (c, w) in enumerate(zip(row, widths))).rstrip()
    return "\n".join([line(head), line(["-" * w for w in widths]), *map(line, rows)])


def markdown_table(head, rows):
    cells = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in row) + " |" for row in cells)
