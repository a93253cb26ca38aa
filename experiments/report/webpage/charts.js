// Pictures as plain SVG and tables: intervals, curves, heat maps. Every mark tells its numbers to the pointer and to readers.
"use strict";

const WIDE = 150; // of an interval's cell, in its own units

/** Round numbers from low to high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

/** As many ticks as there is room for their numbers side by side. */
function apart(low, high, x, percent) {
  const room = (value) => x(value) - tickText(value, percent).length * 3;
  const end = (value) => x(value) + tickText(value, percent).length * 3;
  for (const count of [6, 4, 3, 2]) {
    const found = ticks(low, high, count);
    if (found.every((value, i) => i === 0 || room(value) > end(found[i - 1]) + 3)) return found;
  }
  return [0];
}

function tickText(value, percent) {
  return percent ? String(Math.round(value * 1000) / 10) : String(value);
}

function scale(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}

/** A forest plot: a row per method, a column for each mean and benchmark; the benchmarks of a unit share one scale. */
function forest(table, rows) {
  const compared = rows.filter((row) => Object.keys(row.differences).length || Object.keys(row.parts).length);
  if (!compared.length) return null;
  const columns = [
    ...table.means.map((mean) => ({ name: `mean ${mean.shown}`, higher: mean.higher, mean: true, of: (row) => row.differences[mean.name] })),
    ...(table.benchmarks.length > 1 ? table.benchmarks.map((one) => ({ name: one.shown, higher: one.higher, of: (row) => row.parts[one.name] })) : []),
  ];
  for (const column of columns) {
    const values = columns.filter((one) => one.higher === column.higher && one.mean === column.mean)
      .flatMap((one) => table.rows.map(one.of).filter(Boolean).flatMap((found) => [found.score, found.low ?? 0, found.high ?? 0]));
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
    column.x = scale(low - (high - low) * 0.03, high + (high - low) * 0.03, 2, WIDE - 2);
    column.ticks = apart(low, high, column.x, column.higher);
  }
  const head = make("tr", {}, make("th", { scope: "col", class: "text" }, "method"), columns.map((column) =>
    make("th", { scope: "col", class: "plot" }, make("div", {}, breakable(column.name), make("span", { class: "error" },
      column.higher ? " points, more is better →" : " ← less is better")), axis(column))));
  let merger = null;
  const body = compared.map((row) => {
    const first = row.merger !== merger;
    merger = row.merger;
    return make("tr", { class: first ? "first" : null }, make("th", { scope: "row", class: "text" }, row.names[0], make("span", { class: "rule" }, ` ${row.names[1]}`)),
      columns.map((column) => make("td", { class: "plot" }, interval(column, column.of(row)))));
  });
  return make("section", {}, make("h3", {}, "Difference to uniform coefficients, by benchmark"),
    make("p", { class: "said" }, "Point and 95 % interval. Filled: distinguishable from 0 after Holm's correction, over the table for means, over this picture for "
      + "benchmarks. ", make("span", { class: "better" }, "Green: better."), " ", make("span", { class: "worse" }, "Red: worse.")),
    boxed(make("table", { class: "forest" }, make("caption", { class: "unseen" }, "Differences to uniform coefficients by method and benchmark"), make("thead", {}, head), make("tbody", {}, body)), "Differences by benchmark"));
}

function axis({ x, ticks: at, higher }) {
  return drawn("svg", { viewBox: `0 0 ${WIDE} 14`, width: WIDE, height: 14, "aria-hidden": "true" },
    at.map((value) => drawn("text", { x: x(value), y: 11, "text-anchor": "middle", class: "tick" }, tickText(value, higher))));
}

function interval({ x, ticks: at, higher, name }, found) {
  if (!found) return "–";
  const tone = toneOf(found);
  const words = `${name}: ${shown(found.score, higher, true)} [${shown(found.low, higher, true)}, ${shown(found.high, higher, true)}], ${verdict(found)}`;
  return drawn("svg", { viewBox: `0 0 ${WIDE} 18`, width: WIDE, height: 18, role: "img", "aria-label": words, class: tone }, drawn("title", {}, words),
    at.map((value) => drawn("line", { x1: x(value), x2: x(value), y1: 0, y2: 18, class: value === 0 ? "zero" : "grid" })),
    found.low === null ? null : drawn("line", { x1: x(found.low), x2: x(found.high), y1: 9, y2: 9, class: "whisker" }),
    drawn("circle", { cx: x(found.score), cy: 9, r: 3.4, class: tone === "undecided" ? "dot hollow" : "dot" }));
}

/** Curves over a setting: a panel per merger on shared scales, a line per rule in the rule's colour everywhere. */
function curves(table, { label, mean: name, differences, panels }) {
  const mean = table.means.find((one) => one.name === name);
  const points = panels.flatMap((panel) => panel.lines.flatMap((line) => line.points));
  const values = unique(points.map(([value]) => value)).sort((a, b) => a - b);
  const heights = points.flatMap(([, ...rest]) => rest).filter((one) => one !== null);
  const [low, high] = [Math.min(...heights, ...(differences ? [0] : [])), Math.max(...heights, ...(differences ? [0] : []))];
  const logged = values[0] > 0 && values.at(-1) / values[0] >= 8;
  const along = (value) => (logged ? Math.log10(value) : value);
  const x = scale(along(values[0]), along(values.at(-1)), 46, 292);
  const y = scale(low, high, 148, 8);
  const lines = unique(panels.flatMap((panel) => panel.lines.map((line) => JSON.stringify([line.name, line.look])))).map((one) => JSON.parse(one));
  const what = `${differences ? "difference of " : ""}mean ${mean.shown}${mean.higher ? ", %" : ", less is better"}`;
  return make("section", {}, make("h3", {}, `${what[0].toUpperCase()}${what.slice(1)}, over ${label}`),
    make("p", { class: "said" }, differences ? "To uniform coefficients, with 95 % intervals. " : "± one standard error, uniform coefficients among them. ",
      lines.map(([title, look]) => make("span", { class: "key" }, drawn("svg", { width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" }, sample(look)), title))),
    make("div", { class: "panels" }, panels.map((panel) => make("figure", {}, make("figcaption", {}, panel.name),
      drawn("svg", { viewBox: "0 0 300 180", role: "img", class: "curve", "aria-label": `${panel.name}: ${what}, over ${label}` },
        ticks(low, high, 4).map((at) => [drawn("line", { x1: 46, x2: 292, y1: y(at), y2: y(at), class: at === 0 && differences ? "zero" : "grid" }),
          drawn("text", { x: 42, y: y(at) + 3.5, "text-anchor": "end", class: "tick" }, tickText(at, mean.higher))]),
        values.map((value) => drawn("text", { x: x(along(value)), y: 162, "text-anchor": "middle", class: "tick" }, String(value))),
        drawn("text", { x: 169, y: 177, "text-anchor": "middle", class: "tick" }, label),
        panel.lines.map((line) => lineOf(line, (value) => x(along(value)), y, mean.higher)))))));
}

function ink(colour) {
  return colour.toLowerCase() === "#000000" ? "currentColor" : colour;
}

function sample([colour, full]) {
  return [drawn("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: ink(colour), "stroke-width": 1.6, "stroke-dasharray": full ? null : "4 3" }),
    drawn("circle", { cx: 13, cy: 6, r: 3.2, fill: full ? ink(colour) : "var(--paper)", stroke: ink(colour), "stroke-width": 1.4 })];
}

function lineOf({ name, look: [colour, full], points }, x, y, percent) {
  const [stroke, fill] = [ink(colour), full ? ink(colour) : "var(--paper)"];
  return [drawn("polyline", { points: points.map(([value, score]) => `${x(value)},${y(score)}`).join(" "), fill: "none", stroke, "stroke-width": 1.5, "stroke-dasharray": full ? null : "4 3" }),
    points.map(([value, score, low, high]) => drawn("g", {}, drawn("title", {}, `${name} at ${value}: ${shown(score, percent)} [${shown(low, percent)}, ${shown(high, percent)}]`),
      low === null ? null : drawn("line", { x1: x(value), x2: x(value), y1: y(low), y2: y(high), stroke, "stroke-width": 1 }),
      drawn("circle", { cx: x(value), cy: y(score), r: 3.2, fill, stroke, "stroke-width": 1.4 })))];
}

// The figures' colours: DATA.diverging about "as uniform" (purple: less, orange: more), and cividis from low to high.
const UPWARD = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];

function colourAt(stops, share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const [a, b] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return a.map((value, i) => Math.round(value + (b[i] - value) * (at % 1)));
}

/** A matrix as a table with coloured cells. about: the value in the middle of a scale that is symmetric; null: from low to high. */
function heatmap(values, { rows, columns, label, x, about = null }) {
  const known = values.flat().filter((value) => value !== null);
  const away = Math.max(...known.map((value) => Math.abs(value - (about ?? 0))), 1e-9);
  const [low, high] = about === null ? [Math.min(...known), Math.max(...known)] : [about - away, about + away];
  const stops = about === null ? UPWARD : DATA.diverging;
  const few = columns.length <= 12;
  const cell = (value, i, j) => {
    if (value === null) return make("td", {}, few ? "–" : "");
    const colour = colourAt(stops, (value - low) / (high - low || 1));
    const light = (colour[0] * 299 + colour[1] * 587 + colour[2] * 114) / 1000 > 140;
    const words = `${rows[i]}, ${x} ${columns[j]}: ${value.toPrecision(3)}`;
    return make("td", { style: `background:rgb(${colour});color:${light ? "#000" : "#fff"}`, title: words }, few ? value.toPrecision(3) : make("span", { class: "unseen" }, value.toPrecision(3)));
  };
  const bar = `linear-gradient(to right, ${stops.map((_, i) => `rgb(${colourAt(stops, i / (stops.length - 1))})`).join(", ")})`;
  return make("figure", {}, make("figcaption", {}, label, make("span", { class: "scale" }, low.toPrecision(3), make("i", { style: `background:${bar}` }), high.toPrecision(3))),
    boxed(make("table", { class: few ? "heat" : "heat many" }, make("caption", { class: "unseen" }, label),
      make("thead", {}, make("tr", {}, make("th", { class: "text", scope: "col" }, `${x} →`), columns.map((name) => make("th", { scope: "col" }, few || name % 5 === 0 ? String(name) : "")))),
      make("tbody", {}, values.map((line, i) => make("tr", {}, make("th", { scope: "row", class: "text" }, rows[i]), line.map((value, j) => cell(value, i, j)))))), label));
}

/** Heat maps of a run's coefficients, of what they were made of, and of the experts' distances. */
function coefficientCharts(found) {
  if (!found) return [];
  const { tasks, blocks } = found.table;
  const columns = [...(blocks[0] ?? [])].map((_, i) => i);
  const at = { rows: tasks, columns, x: "block" };
  const charts = [];
  if (columns.length) charts.push(heatmap(blocks, { ...at, label: "Coefficients K·σ (1 is uniform)", about: 1 }));
  if (found.alpha) charts.push(heatmap(tasks.map((task) => found.alpha[task]), { ...at, label: "Sensitivity α" }));
  if (found.distances?.l2) {
    const apart = found.distances.l2.map((line, i) => line.map((value, j) => (i === j ? null : value)));
    charts.push(heatmap(apart, { rows: tasks, columns: tasks, x: "on the data of", label: "Alignment: L2 distance of the logits to another expert's" }));
  }
  return charts;
}
