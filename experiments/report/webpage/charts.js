// Charts by Observable Plot: colours of Okabe and Ito, or perceptual scales; every mark has its numbers as a tip.
"use strict";

const COLOURS = ["#999999", "#56b4e9", "#e69f00", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b8a800"];
const STYLE = { background: "transparent", fontSize: "11px", overflow: "visible" };

/** Differences to the uniform control with their intervals, a line per method. */
function differencesChart(table, mean, rows) {
  const percent = mean.higher_is_better;
  const factor = percent ? 100 : 1;
  const points = rows
    .filter((row) => row.differences[mean.name])
    .map((row) => {
      const found = row.differences[mean.name];
      const low = found.low === null ? found.score : found.low;
      const high = found.high === null ? found.score : found.high;
      return { name: `${row.merger} + ${row.scaling}`, score: found.score * factor, low: low * factor, high: high * factor,
        distinct: found.significant };
    });
  if (!points.length || points.length > 60) return null;
  const wide = d3.max(points, (point) => point.name.length) * 6.2 + 12;
  return Plot.plot({
    style: STYLE, width: Math.min(820, wide + 420), marginLeft: wide, height: 40 + 15 * points.length,
    ariaLabel: `Difference of mean ${mean.name} to uniform coefficients, by method, with 95 % intervals`,
    x: { label: `Δ mean ${mean.name}${percent ? " (points)" : " (lower is better)"}`, grid: true, nice: true },
    y: { label: null, domain: points.map((point) => point.name) },
    marks: [
      Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.6 }),
      Plot.ruleY(points, { y: "name", x1: "low", x2: "high", stroke: COLOURS[4], strokeWidth: 1.2 }),
      Plot.dot(points, { y: "name", x: "score", r: 3.2, stroke: COLOURS[4], tip: true,
        fill: (point) => (point.distinct ? COLOURS[4] : "var(--paper)"),
        channels: { low: "low", high: "high", "p ≤ 0.05 after Holm": (point) => (point.distinct ? "yes" : "no") } }),
    ],
  });
}

/** A matrix as a heat map. about: the value that a diverging scale is symmetric about; none: sequential. */
function heatmap(values, { rows, columns, label, x, y, about = null }) {
  const cells = values.flatMap((line, i) => line.map((value, j) => ({ row: rows[i], column: columns[j], value })));
  const known = cells.filter((cell) => cell.value !== null);
  const longest = d3.max(rows, (name) => String(name).length);
  return Plot.plot({
    style: STYLE, marginLeft: 14 + 7 * longest, marginBottom: 34, padding: 0.04,
    width: Math.min(860, 60 + 7 * longest + Math.max(22, 300 / columns.length) * columns.length),
    height: 56 + 26 * rows.length, ariaLabel: `${label} by ${y} and ${x}`,
    x: { label: x, domain: columns, tickSize: 0, ticks: columns.length > 20 ? columns.filter((_, i) => i % 4 === 0) : undefined },
    y: { label: null, domain: rows, tickSize: 0 },
    color: about === null ? { scheme: "cividis", label, legend: true }
      : { type: "diverging", scheme: "PuOr", pivot: about, symmetric: true, label, legend: true },
    marks: [Plot.cell(known, { x: "column", y: "row", fill: "value", tip: true, inset: 0.3 })],
  });
}

/** Heat maps of a run's coefficients, of what they were made of, and of the experts' distances. */
function coefficientCharts(found) {
  if (!found) return [];
  const { tasks, blocks } = found.table;
  const columns = d3.range(blocks[0]?.length ?? 0);
  const at = { rows: tasks, columns, x: "block", y: "expert" };
  const charts = [];
  if (columns.length) charts.push(["Coefficients K·σ (1 is uniform)", heatmap(blocks, { ...at, label: "K·σ", about: 1 })]);
  if (found.alpha) charts.push(["Sensitivity α", heatmap(tasks.map((task) => found.alpha[task]), { ...at, label: "α" })]);
  for (const [metric, matrix] of Object.entries(found.distances ?? {})) {
    if (metric !== "l2") continue;
    const apart = matrix.map((line, i) => line.map((value, j) => (i === j ? null : value)));
    const square = { rows: tasks, columns: tasks, label: "distance", x: "on the data, and against the expert, of", y: "expert" };
    charts.push(["Alignment: L2 distance of the logits", heatmap(apart, square)]);
  }
  return charts.map(([caption, chart]) => make("figure", {}, make("figcaption", {}, caption), chart));
}
