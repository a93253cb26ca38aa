// What the address says is what the page shows: #/study/NAME, #/run/ID, #/compare/ID/ID.
"use strict";

function studyPage(study) {
  const all = study.tables.flatMap((table) => table.rows.filter((row) => row.scaling !== null));
  const choose = (name, values) => make("select", { id: name, onchange: draw },
    make("option", { value: "" }, "all"), [...new Set(values)].map((value) => make("option", { value }, value)));
  const model = choose("model", study.tables.map((table) => table.model));
  const merger = choose("merger", all.map((row) => row.merger));
  const scaling = choose("scaling", all.map((row) => row.scaling));
  const members = make("input", { type: "checkbox", id: "members", checked: true, onchange: draw });
  const other = make("select", { id: "study", onchange: () => { location.hash = `#/study/${other.value}`; } },
    DATA.studies.map((one) => make("option", { value: one.name, selected: one.name === study.name }, one.name)));
  const place = make("div");

  function keep(row) {
    if (row.scaling === null) return members.checked;
    return (!merger.value || row.merger === merger.value) && (!scaling.value || row.scaling === scaling.value);
  }

  function draw() {
    const shownTables = study.tables.filter((table) => !model.value || table.model === model.value);
    place.replaceChildren(...shownTables.flatMap((table) => tablePart(table, table.rows.filter(keep))));
  }

  draw();
  return [make("h1", {}, study.name),
    make("div", { class: "controls" }, make("label", {}, "study", other), make("label", {}, "model", model),
      make("label", {}, "merger", merger), make("label", {}, "scaling", scaling),
      make("label", {}, members, " base and experts")),
    place];
}

function tablePart(table, rows) {
  const firsts = new Set(rows.filter((row, i) => i && row.scaling !== null && row.merger !== rows[i - 1].merger));
  const rowClass = (row) => [row.scaling === null ? "member" : "", firsts.has(row) ? "first" : ""].join(" ").trim() || null;
  const charts = table.means.map((mean) => differencesChart(table, mean, rows)).filter(Boolean);
  return [make("h2", {}, `${table.model} on ${table.suite}`),
    sortable(methodColumns(table), rows, { caption: `${table.model} on ${table.suite}`, rowClass }),
    charts.length ? make("div", { class: "charts" }, charts) : null,
    make("details", {}, make("summary", {}, "How to read this table, and how it was made"),
      make("ul", { class: "notes" }, table.notes.map((note) => make("li", {}, note))))].filter(Boolean);
}

async function show() {
  const [, kind, ...names] = decodeURIComponent(location.hash).split("/");
  const main = document.getElementById("main");
  let content;
  if (kind === "run") content = await runPage(names[0]);
  else if (kind === "compare") content = await comparePage(names[0], names[1]);
  else content = studyPage(studyOf(names[0]));
  main.replaceChildren(...content.filter(Boolean));
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
