// What the address says is what the page shows: #/, #/study/NAME?merger=M&scaling=S, #/run/ID, #/compare/ID/ID.
"use strict";

function overview() {
  const tables = DATA.studies.flatMap((study) => study.tables.map((table) => ({ study, table,
    merges: table.rows.filter((row) => row.scaling !== null),
    compared: table.rows.flatMap((row) => Object.values(row.differences)) })));
  const columns = [
    { name: "study", text: true, cell: ({ study }) => [make("a", { href: `#/study/${study.name}` }, study.name)], key: ({ study }) => study.name },
    { name: "model", text: true, cell: ({ table }) => [table.model], key: ({ table }) => table.model },
    { name: "suite", text: true, cell: ({ table }) => [table.suite], key: ({ table }) => table.suite },
    { name: "mergers", text: true, cell: ({ merges }) => [unique(merges.map((row) => row.merger)).join(", ") || "–"], key: ({ merges }) => merges.length },
    { name: "methods", cell: ({ merges }) => [String(merges.length)], key: ({ merges }) => merges.length },
    { name: "runs", cell: ({ table }) => [String(runsOf(table))], key: ({ table }) => runsOf(table) },
    { name: "† of compared with uniform", cell: ({ compared }) => [`${compared.filter((one) => one.significant).length} of ${compared.length}`],
      key: ({ compared }) => compared.filter((one) => one.significant).length },
  ];
  return [make("h1", {}, "Studies"), sortable(columns, tables, { caption: "Studies on this page" }),
    make("p", { class: "said" }, "†: methods whose mean differs, to the better or the worse, from that of uniform coefficients "
      + "under the same merger, after Holm's correction over all that the table compares.")];
}

function runsOf(table) {
  return unique(table.rows.flatMap((row) => row.runs.map((run) => run.id))).length;
}

function unique(values) {
  return [...new Set(values)];
}

function studyPage(study, asked) {
  const all = study.tables.flatMap((table) => table.rows.filter((row) => row.scaling !== null));
  const choose = (name, values) => make("select", { id: name, onchange: chosen },
    make("option", { value: "" }, "all"),
    unique(values).map((value) => make("option", { value, selected: value === asked.get(name) }, value)));
  const filters = {
    model: choose("model", study.tables.map((table) => table.model)),
    merger: choose("merger", all.map((row) => row.merger)),
    scaling: choose("scaling", all.map((row) => row.scaling)),
  };
  const members = make("input", { type: "checkbox", id: "members", checked: asked.get("members") !== "no", onchange: chosen });
  const other = make("select", { id: "study", onchange: () => { location.hash = `#/study/${other.value}`; } },
    DATA.studies.map((one) => make("option", { value: one.name, selected: one.name === study.name }, one.name)));
  const place = make("div");

  function keep(row) {
    if (row.scaling === null) return members.checked;
    return ["merger", "scaling"].every((name) => !filters[name].value || row[name] === filters[name].value);
  }

  /** The address tells the choice, so that it can be sent on, and is there again on the way back from a run. */
  function chosen() {
    const words = Object.entries(filters).filter(([, select]) => select.value).map(([name, select]) => [name, select.value]);
    if (!members.checked) words.push(["members", "no"]);
    const query = String(new URLSearchParams(words));
    history.replaceState(null, "", `#/study/${study.name}${query && `?${query}`}`);
    draw();
  }

  function draw() {
    const shownTables = study.tables.filter((table) => !filters.model.value || table.model === filters.model.value);
    place.replaceChildren(...shownTables.flatMap((table) => tablePart(table, table.rows.filter(keep))));
  }

  draw();
  return [make("h1", {}, study.name),
    make("div", { class: "controls" }, make("label", {}, "study", other),
      Object.entries(filters).map(([name, select]) => make("label", {}, name, select)),
      make("label", {}, members, " base and experts")),
    place];
}

function tablePart(table, rows) {
  const firsts = new Set(rows.filter((row, i) => i && row.scaling !== null && row.merger !== rows[i - 1].merger));
  const rowClass = (row) => [row.scaling === null ? "member" : "", firsts.has(row) ? "first" : ""].join(" ").trim() || null;
  const charts = table.means.map((mean) => differencesChart(table, mean, rows)).filter(Boolean);
  return [make("h2", {}, `${table.model} on ${table.suite}`),
    sortable(methodColumns(table), rows, { caption: `${table.model} on ${table.suite}`, rowClass, pinned: 2 }),
    charts.length ? make("div", { class: "charts" }, charts) : null,
    make("details", {}, make("summary", {}, "How to read this table, and how it was made"),
      make("ul", { class: "notes" }, table.notes.map((note) => make("li", {}, note))))].filter(Boolean);
}

async function show() {
  const [path, query] = location.hash.split("?");
  const [, kind, ...names] = decodeURIComponent(path).split("/");
  const main = document.getElementById("main");
  let content;
  if (kind === "run") content = await runPage(names[0]);
  else if (kind === "compare") content = await comparePage(names[0], names[1]);
  else if (kind !== "study" && DATA.studies.length > 1) content = overview();
  else content = studyPage(studyOf(names[0]), new URLSearchParams(query));
  main.replaceChildren(...content.filter(Boolean));
  main.querySelectorAll("table.pinned").forEach(pin);
  const at = kind === "run" || kind === "compare" ? listed(names[0]) : null;
  document.getElementById("trail").replaceChildren(...(at ? [make("a", { href: `#/study/${at.study.name}` }, at.study.name)] : []));
  document.title = `${main.querySelector("h1").textContent} · sensmerge`;
  document.documentElement.dataset.ready = location.hash || "#"; // for those who wait: tests and the bench
  performance.mark("shown");
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
window.addEventListener("hashchange", () => show().then(() => { scrollTo(0, 0); document.getElementById("main").focus({ preventScroll: true }); }));
show();
