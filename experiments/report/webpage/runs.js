// Pages of one run, and of two side by side.
"use strict";

async function runPage(id) {
  const at = listed(id, address().words.get("study"));
  if (!at) return [make("h1", {}, "No such run"), make("p", {}, `This page holds no run ${id}.`)];
  const { run, items } = await detailsOfRun(id);
  const charts = coefficientCharts(run.coefficients);
  return [
    make("h1", {}, at.row.names.filter(Boolean).join(", ")),
    facts([
      ["run", `${run.title} (${id})`], ["study", make("a", { href: `#/study/${at.study.name}` }, at.study.name)],
      ["model on suite", `${at.table.model} on ${at.table.suite}`], ["seed", String(at.run.seed)],
      ["command", (run.measured.argv ?? []).join(" ")],
    ]),
    scoreTable(run, at.table), compareForm(at, id),
    ...Object.entries(run.results).map(([name, result]) => answers(name, titled(at.table, name), result, items[result.items])),
    charts.length ? make("h2", {}, "Coefficients") : null, charts.length ? make("div", { class: "charts" }, charts) : null,
    make("h2", {}, "Provenance"),
    facts([["code", commit(run.measured.git)], ["finished", run.measured.finished], ["machine", machine(run.measured.machine)],
      ["seconds", Object.entries(run.measured.seconds ?? {}).map(([k, v]) => `${k} ${v}`).join(", ")],
      ["peak memory", run.measured.peak_memory_mb ? `${Math.round(run.measured.peak_memory_mb)} MB, of the process` : null]]),
    unfold("Configuration: what determines the numbers", run.identity),
    unfold("Digests of weights, calibration samples and data", run.digests),
    unfold("Versions", run.versions),
    run.measured.stages ? unfold("Stages computed here, or found kept", run.measured.stages) : null,
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

/** A benchmark's name as tables show it. */
function titled(table, name) {
  return table.benchmarks.find((one) => one.name === name)?.shown ?? name;
}

function scoreTable(run, table) {
  const rows = Object.entries(run.results).flatMap(([name, result]) =>
    Object.entries(result.metrics).map(([metric, found]) => ({ name, metric, found, higher: result.higher_is_better,
      percent: result.higher_is_better && !metric.includes("bits"), main: metric === result.primary })));
  return sortable([
    { id: "benchmark", name: "benchmark", text: true, cell: (row) => [titled(table, row.name)], key: (row) => row.name },
    { id: "metric", name: "metric", text: true, cell: (row) => [row.main ? make("b", {}, row.metric) : row.metric], key: (row) => row.metric },
    { id: "score", name: "score", sub: "± items", down: true, cell: (row) => scored([row.found.score, row.found.stderr], row.percent), key: (row) => (row.higher ? 1 : -1) * row.found.score },
    { id: "n", name: "items", down: true, cell: (row) => [String(row.found.n)], key: (row) => row.found.n },
  ], rows, { caption: "Every metric of this run" });
}

/** Every item of a benchmark, a page at a time: which are right, and a search in prompts, gold answers and answers. */
function answers(name, title, result, items) {
  const has = (texts) => Object.values(texts).some((text) => text !== null && text !== undefined);
  const rows = items.ids.map((id, i) => ({ id, prompt: items.prompts[i], gold: items.golds[i], value: result.values[i],
    answer: result.outputs[i] === null ? null : items.answers[i][result.outputs[i]], note: result.notes[i] ?? null }));
  const columns = [
    { id: "item", name: "item", text: true, kind: "text", cell: (row) => [row.id], key: (row) => row.id },
    { id: "value", name: result.primary, down: result.higher_is_better, cell: (row) => [value(row.value)], key: (row) => row.value },
    ...[["prompt", items.prompts], ["gold", items.golds], ["answer", rows.map((row) => row.answer)], ["note", result.notes]].filter(([, texts]) => has(texts))
      .map(([part]) => ({ id: part, name: part, text: true, kind: part === "note" ? "text" : "wrap", cell: (row) => textOrNot(row, part), key: (row) => row[part] ?? null })),
  ];
  const [word, only, page] = [`q_${name}`, `only_${name}`, `page_${name}`];
  const binary = result.values.every((one) => one === 0 || one === 1);
  const place = make("div");
  const draw = () => {
    const { words } = address();
    const wanted = { right: (row) => row.value === 1, wrong: (row) => row.value === 0 }[words.get(only)] ?? (() => true);
    const found = rows.filter((row) => wanted(row) && matches([row.id, row.prompt, row.gold, row.answer, row.note].filter(Boolean).join("\n"), words.get(word) ?? ""));
    const { part, pager } = paged(found, page, draw);
    place.replaceChildren(...[make("p", { class: "said" }, `${found.length} of ${rows.length} items`), sortable(columns, part, { caption: `Items of ${name}`, word: `sort_${name}` }), pager].filter(Boolean));
  };
  const again = () => { remember({ [page]: null }); draw(); };
  const choice = binary && make("label", {}, "show", make("select", { id: only, onchange: (event) => { remember({ [only]: event.target.value }); again(); } },
    [["", "all"], ["right", "right ones"], ["wrong", "wrong ones"]].map(([key, text]) => make("option", { value: key, selected: key === (address().words.get(only) ?? "") }, text))));
  draw();
  return make("details", { class: "items", open: true }, make("summary", {}, make("h2", {}, `${title}: every item`)),
    make("div", { class: "controls" }, searchBox("search", again, word), choice || null, make("span", { class: "said" }, promptsKept(items))), place);
}

/** Which prompts there are; older runs kept none, others those of their first items. */
function promptsKept({ ids, prompts }) {
  const kept = Object.keys(prompts).length;
  if (!kept) return "No prompt was kept with this run: it is older than the file that holds them.";
  return kept < ids.length ? `Prompts were kept of ${kept} of the ${ids.length} items.` : "";
}

function textOrNot(row, part) {
  if (row[part] !== null && row[part] !== undefined) return [row[part]];
  return [part === "prompt" ? make("span", { class: "undecided" }, "not kept") : "–"];
}

function value(number) {
  return number === null || number === undefined ? "–" : String(Number(number.toPrecision(4)));
}

/** Runs of the same table that were asked the same; the control of the same merger and seed is chosen beforehand. */
function compareForm(at, id) {
  const others = at.table.rows.flatMap((row) => row.runs.map((run) => ({ run, row })))
    .filter(({ run }) => run.id !== id && askedTheSame(at.study.asked[at.run.asked], at.study.asked[run.asked]));
  if (!others.length) return null;
  const alike = ({ run, row }) => 2 * (row.merger === at.row.merger && row.scaling === "uniform") + (run.seed === at.run.seed);
  const [chosen] = inOrder(others, alike, true);
  const select = make("select", { id: "other" }, others.map(({ run, row }) => make("option",
    { value: run.id, selected: run.id === chosen.run.id }, `${row.names.filter(Boolean).join(", ")}, seed ${run.seed} (${run.id})`)));
  return make("form", { class: "controls", onsubmit: (event) => { event.preventDefault(); location.hash = `#/compare/${id}/${select.value}?study=${at.study.name}`; } },
    make("label", {}, "item by item against", select), make("button", { type: "submit" }, "compare"));
}

/** Whether what both read had the same bytes: a family that is made anew for each seed has other items under the same names. */
function askedTheSame(mine, theirs) {
  return Object.keys(mine).every((file) => !(file in theirs) || mine[file] === theirs[file]);
}

async function comparePage(first, second) {
  const places = [first, second].map((id) => listed(id, address().words.get("study")));
  if (places.includes(undefined)) return [make("h1", {}, "No such run"), make("p", {}, "One of the two is not on this page.")];
  const [a, b] = await Promise.all([first, second].map(detailsOfRun));
  if (!askedTheSame(a.run.digests.data ?? {}, b.run.digests.data ?? {}))
    return [make("h1", {}, "Two runs of different questions"), make("p", {}, "Their items bear the same names, but their data had other bytes: "
      + "each seed of such a family has its own. Compare runs of one seed.")];
  const names = Object.keys(a.run.results).filter((name) => name in b.run.results);
  const only = make("input", { type: "checkbox", id: "differing", checked: address().words.get("all") !== "yes",
    onchange: () => { remember({ all: !only.checked && "yes" }); draw(); } });
  const place = make("div");
  const draw = () => place.replaceChildren(...names.map((name) => sideBySide(name, titled(places[0].table, name), a, b, only.checked, draw)));
  draw();
  const link = (id, at, { run }) => make("a", { href: `#/run/${id}?study=${at.study.name}` }, `${at.row.names.filter(Boolean).join(", ")}: ${run.title} (${id})`);
  return [make("h1", {}, "Two runs, item by item"),
    facts([["A", link(first, places[0], a)], ["B", link(second, places[1], b)]]),
    make("div", { class: "controls" }, make("label", {}, only, " only items where they differ")), place];
}

function sideBySide(name, title, a, b, differing, draw) {
  const [left, right] = [a.run.results[name], b.run.results[name]];
  const [mine, theirs] = [a.items[left.items], b.items[right.items]];
  const found = new Map(theirs.ids.map((id, j) => [id, j]));
  const text = (items, result, i) => (result.outputs[i] === null ? null : items.answers[i][result.outputs[i]]);
  const rows = mine.ids.map((id, i) => ({ id, i, j: found.get(id) })).filter(({ j }) => j !== undefined).map((row) => ({ ...row,
    x: left.values[row.i], y: right.values[row.j], a: text(mine, left, row.i), b: text(theirs, right, row.j),
    prompt: mine.prompts[row.i] ?? theirs.prompts[row.j] ?? null, gold: mine.golds[row.i] }));
  const sign = left.higher_is_better ? 1 : -1;
  const better = (which) => rows.filter((row) => Math.sign((row.x - row.y) * sign) === which).length;
  const chosen = differing ? rows.filter((row) => row.x !== row.y || row.a !== row.b) : rows;
  const has = (part) => rows.some((row) => row[part] !== null && row[part] !== undefined);
  const tone = (ours, other) => (ours === other ? null : (ours - other) * sign > 0 ? "better" : "worse");
  const columns = [
    { id: "item", name: "item", text: true, kind: "text", cell: (row) => [row.id], key: (row) => row.id },
    { id: "A", name: "A", down: left.higher_is_better, cell: (row) => [make("span", { class: tone(row.x, row.y) }, value(row.x))], key: (row) => row.x },
    { id: "B", name: "B", down: left.higher_is_better, cell: (row) => [make("span", { class: tone(row.y, row.x) }, value(row.y))], key: (row) => row.y },
    ...[["prompt", "prompt"], ["gold", "gold"], ["a", "answer of A"], ["b", "answer of B"]].filter(([part]) => has(part))
      .map(([part, title]) => ({ id: part, name: title, text: true, kind: "wrap", cell: (row) => textOrNot(row, part), key: (row) => row[part] ?? null })),
  ];
  const { part, pager } = paged(chosen, `page_${name}`, draw);
  const score = (result) => shown(result.metrics[result.primary].score, result.higher_is_better);
  return make("section", {}, make("h2", {}, title), make("p", { class: "said" },
    `${rows.length} items: A better on ${better(1)}, B better on ${better(-1)}, equal on ${better(0)}. `
    + `Scores: A ${score(left)}, B ${score(right)} (${left.higher_is_better ? "%, more" : "less"} is better). ${promptsKept(mine)}`),
  sortable(columns, part, { caption: `Items of ${name} in both runs`, word: `sort_${name}` }), pager);
}
