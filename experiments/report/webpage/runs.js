// Pages of one run, and of two side by side.
"use strict";

async function runPage(id) {
  const at = listed(id);
  if (!at) return [make("h1", {}, "No such run"), make("p", {}, `This page holds no run ${id}.`)];
  const held = await detailsOf(at.study.name);
  const run = held.runs[id];
  return [
    make("h1", {}, run.title),
    facts([
      ["run", id], ["study", make("a", { href: `#/study/${at.study.name}` }, at.study.name)],
      ["method", [at.row.merger, at.row.scaling].filter(Boolean).join(" + ")], ["seed", String(run.seed)],
      ["code", commit(run.measured.git)], ["finished", run.measured.finished],
      ["machine", machine(run.measured.machine)],
      ["seconds", Object.entries(run.measured.seconds ?? {}).map(([k, v]) => `${k} ${v}`).join(", ")],
      ["peak memory", run.measured.peak_memory_mb ? `${Math.round(run.measured.peak_memory_mb)} MB, of the process` : null],
      ["command", (run.measured.argv ?? []).join(" ")],
    ]),
    compareForm(at, id, held),
    make("h2", {}, "Scores"), scoreTable(run),
    run.coefficients ? make("h2", {}, "Coefficients") : null,
    make("div", { class: "charts" }, coefficientCharts(run.coefficients)),
    make("h2", {}, "Provenance"),
    unfold("Configuration: what determines the numbers", run.identity),
    unfold("Digests of weights, calibration samples and data", run.digests),
    unfold("Versions", run.versions),
    run.measured.stages ? unfold("Stages computed here, or found kept", run.measured.stages) : null,
    ...Object.entries(run.results).flatMap(([name, result]) => answers(name, result, held.items[result.items])),
  ];
}

function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", { class: "facts" }, known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function commit(git) {
  if (!git?.commit) return "not from a git checkout";
  return `commit ${git.commit.slice(0, 12)}${git.dirty ? " with uncommitted changes" : ""}`;
}

function machine(found) {
  if (!found) return null;
  return `${found.platform}, ${found.cpu ? `${found.cpu}, ` : ""}${found.cores} cores, ${found.threads} threads${found.gpu ? `, ${found.gpu}` : ""}`;
}

function unfold(title, content) {
  return make("details", {}, make("summary", {}, title), make("pre", { tabindex: 0 }, JSON.stringify(content, null, 1)));
}

function scoreTable(run) {
  const rows = Object.entries(run.results).flatMap(([name, result]) =>
    Object.entries(result.metrics).map(([metric, found]) => ({ name, metric, found, percent: result.higher_is_better,
      main: metric === result.primary })));
  return sortable([
    { name: "benchmark", text: true, cell: (row) => [row.name], key: (row) => row.name },
    { name: "metric", text: true, cell: (row) => [row.main ? make("b", {}, row.metric) : row.metric], key: (row) => row.metric },
    { name: "score", cell: (row) => scored(row.found, row.percent && !row.metric.includes("bits")), key: (row) => row.found.score },
    { name: "n", cell: (row) => [String(row.found.n)], key: (row) => row.found.n },
  ], rows, { caption: "Every metric of this run" });
}

function answers(name, result, items) {
  const count = Math.min(DATA.shown, items.ids.length);
  const written = result.outputs.some((text) => text !== null);
  const columns = [
    { name: "item", text: true, cell: (i) => [items.ids[i]], key: (i) => items.ids[i] },
    { name: result.primary, cell: (i) => [value(result.values[i])], key: (i) => result.values[i] },
  ];
  if (written) columns.push({ name: "answer", text: true, kind: "wrap", cell: (i) => [result.outputs[i] ?? "–"], key: (i) => result.outputs[i] });
  if (items.golds.some((text) => text !== null))
    columns.push({ name: "gold", text: true, kind: "wrap", cell: (i) => [items.golds[i] ?? "–"], key: (i) => items.golds[i] });
  if (Object.keys(result.notes).length) columns.push({ name: "note", text: true, cell: (i) => [result.notes[i] ?? ""], key: (i) => result.notes[i] ?? null });
  return [make("h2", {}, `${name}: ${written ? "sample generations" : "items"}`),
    make("p", { class: "said" }, `The first ${count} of ${items.ids.length} items; every item's value is in the comparison of two runs.`),
    sortable(columns, d3.range(count), { caption: `Items of ${name}` })];
}

function value(number) {
  return number === null || number === undefined ? "–" : d3.format(".4~g")(number);
}

/** Runs of the same table that were asked the same; the control of the same merger and seed is chosen beforehand. */
function compareForm(at, id, held) {
  const others = at.table.rows.flatMap((row) => row.runs.map((run) => ({ run, row })))
    .filter(({ run }) => run.id !== id && askedTheSame(held.runs[id], held.runs[run.id]));
  if (!others.length) return null;
  const alike = ({ run, row }) => 2 * (row.merger === at.row.merger && row.scaling === "uniform") + (run.seed === at.run.seed);
  const chosen = d3.greatest(others, alike);
  const select = make("select", { id: "other" }, others.map(({ run, row }) => make("option",
    { value: run.id, selected: run.id === chosen.run.id }, `${row.merger} ${row.scaling ?? ""} s${run.seed} ${run.id}`)));
  return make("form", { class: "controls", onsubmit: (event) => { event.preventDefault(); location.hash = `#/compare/${id}/${select.value}`; } },
    make("label", {}, "item by item against", select), make("button", { type: "submit" }, "compare"));
}

/** Whether what both read had the same bytes: a family that is made anew for each seed has other items under the same names. */
function askedTheSame(a, b) {
  const [mine, theirs] = [a.digests.data ?? {}, b.digests.data ?? {}];
  return Object.keys(mine).every((file) => !(file in theirs) || mine[file] === theirs[file]);
}

async function comparePage(first, second) {
  const places = [listed(first), listed(second)];
  if (places.includes(undefined)) return [make("h1", {}, "No such run"), make("p", {}, "One of the two is not on this page.")];
  const held = await Promise.all(places.map((at) => detailsOf(at.study.name)));
  const [a, b] = [held[0].runs[first], held[1].runs[second]];
  if (!askedTheSame(a, b))
    return [make("h1", {}, "Two runs of different questions"), make("p", {}, "Their items bear the same names, but their data had other bytes: "
      + "each seed of such a family has its own. Compare runs of one seed.")];
  const names = Object.keys(a.results).filter((name) => name in b.results);
  const only = make("input", { type: "checkbox", id: "differing", checked: true });
  const place = make("div");
  const draw = () => place.replaceChildren(...names.flatMap((name) => sideBySide(name, a, b, held, only.checked)));
  only.addEventListener("change", draw);
  draw();
  return [make("h1", {}, "Two runs, item by item"),
    facts([["A", make("a", { href: `#/run/${first}` }, `${a.title} (${first})`)], ["B", make("a", { href: `#/run/${second}` }, `${b.title} (${second})`)]]),
    make("div", { class: "controls" }, make("label", {}, only, " only items where they differ")), place];
}

function sideBySide(name, a, b, held, differing) {
  const [left, right] = [a.results[name], b.results[name]];
  const [mine, theirs] = [held[0].items[left.items], held[1].items[right.items]];
  const found = new Map(theirs.ids.map((id, j) => [id, j]));
  const rows = mine.ids.map((id, i) => ({ id, i, j: found.get(id) })).filter(({ j }) => j !== undefined)
    .map((row) => ({ ...row, x: left.values[row.i], y: right.values[row.j] }));
  const tell = left.higher_is_better ? (x, y) => d3.ascending(x, y) : (x, y) => d3.descending(x, y);
  const better = (sign) => rows.filter((row) => Math.sign(tell(row.x, row.y)) === sign).length;
  const chosen = differing ? rows.filter((row) => row.x !== row.y || left.outputs[row.i] !== right.outputs[row.j]) : rows;
  const written = (row) => [left.outputs[row.i] ?? "–", right.outputs[row.j] ?? "–"];
  const columns = [
    { name: "item", text: true, cell: (row) => [row.id], key: (row) => row.id },
    { name: "A", cell: (row) => [value(row.x)], key: (row) => row.x },
    { name: "B", cell: (row) => [value(row.y)], key: (row) => row.y },
    { name: "gold", text: true, kind: "wrap", cell: (row) => [mine.golds[row.i] ?? "–"], key: (row) => mine.golds[row.i] ?? null },
    { name: "answer of A", text: true, kind: "wrap", cell: (row) => [written(row)[0]], key: (row) => written(row)[0] },
    { name: "answer of B", text: true, kind: "wrap", cell: (row) => [written(row)[1]], key: (row) => written(row)[1] },
  ];
  return [make("h2", {}, name), make("p", { class: "said" },
    `${rows.length} items: A better on ${better(1)}, B better on ${better(-1)}, equal on ${better(0)}. `
    + `Answers in words: the first ${DATA.shown} items.`),
  sortable(columns, chosen, { caption: `Items of ${name} in both runs` })];
}
