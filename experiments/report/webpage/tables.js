// Tables that sort: real <table> elements, a button in every heading, aria-sort saying how they stand.
"use strict";

/**
 * columns: {name, text (left-aligned), cell(row) -> nodes, key(row) -> value to sort by, null last}.
 * rowClass: class of a row in the given order. pinned: how many first columns stay in view. Sorting twice turns the order round, a third time restores the given one.
 */
function sortable(columns, rows, { caption, rowClass = () => null, pinned = 0 } = {}) {
  let column = null;
  let ascending = true;
  const body = make("tbody");
  const heads = columns.map((one) => make("th", { scope: "col", class: one.text ? `text ${one.kind ?? ""}` : null, "aria-sort": "none" },
    make("button", { type: "button", onclick: () => turn(one) }, breakable(one.name))));
  const table = make("table", { class: pinned ? "pinned" : null, "data-pinned": pinned || null }, make("caption", { hidden: true }, caption ?? ""),
    make("thead", {}, make("tr", {}, heads)), body);

  function turn(one) {
    if (column !== one) [column, ascending] = [one, Boolean(one.text)];
    else if (ascending === Boolean(one.text)) ascending = !ascending;
    else column = null;
    draw();
  }

  function draw() {
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      columns[i] !== column ? "none" : ascending ? "ascending" : "descending"));
    const ordered = [...rows];
    if (column) {
      const compare = ascending ? d3.ascending : d3.descending;
      ordered.sort((a, b) => {
        const [x, y] = [column.key(a), column.key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return compare(x, y);
      });
    }
    body.replaceChildren(...ordered.map((row) => make("tr", { class: column ? null : rowClass(row) },
      columns.map((one) => make("td", { class: one.kind ?? (one.text ? "text" : null) }, one.cell(row))))));
  }

  draw();
  return make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 }, table);
}

/** Keep a table's first columns in view while the others scroll by: each lies as far in as those before it are wide. */
function pin(table) {
  let left = 0;
  for (const head of [...table.tHead.rows[0].cells].slice(0, Number(table.dataset.pinned))) {
    table.style.setProperty(`--left-${head.cellIndex}`, `${left}px`);
    left += head.getBoundingClientRect().width;
  }
}

/** A name that may go on in the next line behind each underscore, as narrow paper wants it. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

/** The columns of a study's table, in the report's order and units. */
function methodColumns(table) {
  const merges = table.rows.some((row) => row.scaling !== null);
  const columns = [
    { name: "merger", text: true, cell: (row) => breakable(row.merger), key: (row) => row.merger },
    { name: "scaling", text: true, cell: (row) => breakable(row.scaling ?? "–"), key: (row) => row.scaling },
    { name: "models", cell: (row) => [row.models ? String(row.models) : "–"], key: (row) => row.models },
  ];
  for (const { name, higher_is_better: higher } of table.benchmarks)
    columns.push({ name: higher ? name : `${name} ↓`, cell: (row) => scored(row.scores[name], higher),
      key: (row) => row.scores[name]?.score ?? null });
  for (const mean of table.means) {
    const arrow = mean.higher_is_better ? "" : " ↓";
    columns.push({ name: `mean ${mean.name}${arrow}`, cell: (row) => scored(row.means[mean.name], mean.higher_is_better),
      key: (row) => row.means[mean.name]?.score ?? null });
    if (!merges) continue;
    columns.push({ name: `Δ ${mean.name}${arrow} [95 %]`, cell: (row) => compared(row.differences[mean.name], mean),
      key: (row) => row.differences[mean.name]?.score ?? null });
    columns.push({ name: `p ${mean.name}`, cell: (row) => [probability(row.differences[mean.name])],
      key: (row) => row.differences[mean.name]?.p_holm ?? null });
  }
  if (merges) columns.push({ name: "K·σ", cell: (row) => [row.weights ? row.weights.map((w) => w.toFixed(2)).join("..") : "–"],
    key: (row) => row.weights?.[1] ?? null });
  if (table.rows.some((row) => row.distance !== undefined)) columns.push({ name: "‖θ−θ₀‖",
    cell: (row) => [row.distance?.toPrecision(3) ?? "–"], key: (row) => row.distance ?? null });
  columns.push({ name: "runs", text: true, kind: "text runs", cell: (row) => row.runs.map((run) =>
    make("a", { href: `#/run/${run.id}`, title: run.title }, `s${run.seed}`)), key: (row) => row.runs.length });
  return columns;
}

function compared(found, mean) {
  if (!found) return ["–"];
  const percent = mean.higher_is_better;
  const interval = found.low === null ? "" : ` [${shown(found.low, percent, "+")}, ${shown(found.high, percent, "+")}]`;
  const better = found.score > 0 === percent;
  const tone = found.significant ? (better ? "better mark" : "worse mark") : null;
  return [make("span", { class: tone }, shown(found.score, percent, "+")), make("span", { class: "error" }, interval),
    found.significant ? make("span", { class: "mark" }, " †") : null];
}

function probability(found) {
  if (!found) return "–";
  return found.p_holm < 0.001 ? "<0.001" : found.p_holm.toFixed(3);
}
