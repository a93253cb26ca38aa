// A study: its answer, filters, tables of merges and of base and experts, pictures, notes.
"use strict";

const FILTERS = { model: (table) => table.model, suite: (table) => table.suite };

function studyPage(study) {
  const { words } = address();
  const merges = study.tables.flatMap((table) => table.rows.filter((row) => row.scaling !== null));
  const select = (name, options) => make("select", { id: name, onchange: (event) => { remember({ [name]: event.target.value }); draw(); } },
    make("option", { value: "" }, "all"), options.map(([value, text]) => make("option", { value, selected: value === words.get(name) }, text)));
  const named = (part, at) => unique(merges.map((row) => JSON.stringify([row[part], row.names[at]]))).map((one) => JSON.parse(one));
  const filters = [
    ...Object.entries(FILTERS).map(([name, of]) => [name, unique(study.tables.map(of)).map((value) => [value, value])]).filter(([, options]) => options.length > 1),
    ["merger", named("merger", 0)], ["scaling", named("scaling", 1)],
  ];
  const other = make("select", { id: "study", onchange: () => { location.hash = `#/study/${other.value}`; } },
    DATA.studies.map((one) => make("option", { value: one.name, selected: one === study }, one.name)));
  const place = make("div");

  function draw() {
    const chosen = address().words;
    const keep = (row) => row.scaling === null || (["merger", "scaling"].every((name) => !chosen.get(name) || row[name] === chosen.get(name))
      && matches([row.merger, row.scaling, ...row.names].join(" "), chosen.get("q") ?? ""));
    const tables = study.tables.filter((table) => Object.entries(FILTERS).every(([name, of]) => !chosen.get(name) || of(table) === chosen.get(name)));
    place.replaceChildren(...tables.flatMap((table) => tablePart(study, table, table.rows.filter(keep))));
  }

  draw();
  return [make("h1", {}, study.name), ...study.tables.flatMap((table) => verdictOf(study, table)),
    make("details", { class: "filters", open: innerWidth > 640 || [...words.keys()].length > 0 }, make("summary", {}, "Search and filter"),
      make("div", { class: "controls" }, make("label", {}, "study", other), searchBox("search", draw),
        filters.map(([name, options]) => make("label", {}, name === "scaling" ? "rule" : name, select(name, options))),
        make("a", { href: `#/study/${study.name}`, class: "csv", download: `${study.name}.csv`, onclick: (event) => { event.preventDefault(); download(study); } }, "CSV of all numbers"))),
    place];
}

/** The answer as sentences, and the lab book's. */
function verdictOf(study, table) {
  const found = everyAnswer().filter((one) => one.table === table);
  const where = study.tables.length > 1 ? `${table.model} on ${table.suite}: ` : "";
  return [...found.map((one) => make("p", { class: "answer" }, where, "Best ", one.mean.shown, ": ", make("b", {}, `${one.row.names[0]}, ${one.row.names[1]}`), " with ",
    scored(one.row.means[one.mean.name], one.mean.higher), ` ${unit(one.mean)}. Δ to its uniform control: `, overUniform(one), ". Δ to Task Arithmetic, uniform: ", overArithmetic(one), ".")),
  study.entry === null ? null : make("p", { class: "answer" }, "Lab book: ", cited(study, table)),
  registered(table)].filter(Boolean);
}

async function download(study) {
  const { csv } = await detailsOf(study.name);
  const place = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
  make("a", { href: place, download: `${study.name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(place), 10_000);
}

function tablePart(study, table, rows) {
  const merges = rows.filter((row) => row.scaling !== null);
  const members = rows.filter((row) => row.scaling === null);
  const firsts = new Set(merges.filter((row, i) => i && row.merger !== merges[i - 1].merger));
  const title = `${table.model} on ${table.suite}`;
  const picture = make("div");
  const redraw = (ordered) => picture.replaceChildren(...[forest(table, ordered)].filter(Boolean));
  const parts = [make("h2", { class: "part" }, `Merges: ${title}`), merges.length ? sortable(methodColumns(study, table, true), merges, { caption: `Merges: ${title}`,
    rowClass: (row) => (firsts.has(row) ? "first" : null), pinned: 2, ordered: redraw, kind: "methods" }) : make("p", {}, "No merge is left by this choice."),
  picture, ...table.curves.map((one) => curves(table, one))];
  if (members.length) parts.push(make("h2", {}, `Base and experts: ${title}`),
    sortable(methodColumns(study, table, false), members, { caption: `Base and experts: ${title}`, word: "members", kind: "methods" }));
  return [...parts, make("details", {}, make("summary", {}, "How to read these tables, and how they were made"),
    make("ul", { class: "notes" }, table.notes.map((note) => make("li", {}, note))))];
}

/** The columns of a study's table: the means first, then each benchmark, then what the runs were. */
function methodColumns(study, table, merges) {
  const both = table.rows.some((row) => row.models > 1);
  const errors = both ? `± items ± ${table.repeated}` : "± items";
  const columns = [{ id: "merger", name: merges ? "merger" : "model", text: true, kind: "text", cell: (row) => breakable(row.names[0]), key: (row) => row.names[0] }];
  if (merges) columns.push({ id: "rule", name: "rule", text: true, kind: "text", cell: (row) => [row.names[1]], key: (row) => row.names[1] });
  const score = (id, name, higher, of) => columns.push({ id, name: `${name}${higher ? "" : " ↓"}`, sub: errors, down: higher, kind: "score",
    cell: (row) => scored(of(row), higher, both), key: (row) => of(row)?.[0] ?? null });
  for (const mean of table.means) {
    score(mean.name, `mean ${mean.shown}`, mean.higher, (row) => row.means[mean.name]);
    if (!merges) continue;
    const of = (row) => row.differences[mean.name];
    columns.push({ id: `delta_${mean.name}`, name: `Δ to uniform${table.means.length > 1 ? `, ${mean.shown}` : ""}${mean.higher ? "" : " ↓"}`, sub: "[95 %]", down: mean.higher, kind: "delta",
      cell: (row) => compared(of(row), mean.higher), key: (row) => of(row)?.score ?? null });
    columns.push({ id: `p_${mean.name}`, name: "p", title: "two-sided, after Holm's correction over the table", cell: (row) => [probability(of(row))], key: (row) => of(row)?.p_holm ?? null },
    { id: `from_${mean.name}`, name: "detectable", sub: "from", title: "the smallest true difference that would have been found with 80 % power",
      cell: (row) => [of(row)?.from ?? "–"], key: (row) => of(row)?.detectable ?? null });
  }
  for (const one of table.benchmarks) score(one.name, one.shown, one.higher, (row) => row.scores[one.name]);
  if (both) columns.push({ id: "models", name: table.repeated, down: true, cell: (row) => [row.models ? String(row.models) : "–"], key: (row) => row.models });
  if (merges) columns.push({ id: "weights", name: "K·σ", title: "smallest and largest coefficient; 1 is uniform", down: true,
    cell: (row) => [row.weights ? row.weights.map((w) => w.toFixed(2)).join("..") : "–"], key: (row) => row.weights?.[1] ?? null });
  if (table.rows.some((row) => row.distance !== null)) columns.push({ id: "distance", name: "‖θ−θ₀‖", title: "distance to the base",
    cell: (row) => [row.distance?.toPrecision(3) ?? "–"], key: (row) => row.distance });
  columns.push({ id: "runs", name: "runs", text: true, kind: "text runs", cell: (row) => links(study, row), key: (row) => row.runs.length });
  return columns;
}

/** A link for each run, by its seed; of many folded. */
function links(study, { runs }) {
  const found = runs.map((run) => [make("a", { href: `#/run/${run.id}?study=${study.name}`, title: run.title }, `s${run.seed}`), " "]);
  return runs.length > 8 ? [make("details", {}, make("summary", {}, `${runs.length} runs`), found)] : found;
}

/** What the study registered before its runs, an answer a row; the whole sentence at the pointer. */
function registered(table) {
  if (!table.registered.length) return null;
  const heads = ["", "merger", "difference", "Δ [95 %]", "p", "verdict", "detectable", "rank", "headroom"];
  const texts = new Set([0, 1, 2, 5]);
  const tone = (one) => (one.verdict === "better" || one.verdict === "worse" ? one.verdict : "undecided");
  const cells = (one) => [make("b", {}, one.name), one.merger, one.what,
    [make("span", { class: `difference ${tone(one)}` }, one.difference), make("span", { class: "interval" }, ` ${one.interval}`)],
    one.p, make("span", { class: `verdict ${tone(one)}` }, one.verdict), one.detectable, one.rank, one.headroom];
  return make("details", { class: "registered", open: innerWidth > 640 },
    make("summary", {}, "What was registered before the runs, and its answers"), make("p", { class: "said" }, table.registration,
      " Detectable: the smallest difference found with 80 % power. Rank: of the rule among its shuffles. Headroom: the share of what the oracle gains."),
    boxed(make("table", {}, make("caption", { class: "unseen" }, "Registered comparisons"), make("thead", {}, make("tr", {}, heads.map((head, i) => make("th", { scope: "col", class: texts.has(i) ? "text" : null }, head)))),
      make("tbody", {}, table.registered.map((one) => make("tr", { title: one.said }, cells(one).map((cell, i) => make("td", { class: texts.has(i) ? "text" : null }, cell)))))), "Registered comparisons"));
}
