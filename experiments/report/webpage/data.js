// The page's data: tables at once, what single runs' pages show when the first of them is opened.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const unpacked = new Map();

/** A study by name, or the first. */
function studyOf(name) {
  return DATA.studies.find((one) => one.name === name) ?? DATA.studies[0];
}

/** Where a run is listed: {study, table, row, run}, or undefined. */
function listed(id) {
  for (const study of DATA.studies)
    for (const table of study.tables)
      for (const row of table.rows)
        for (const run of row.runs) if (run.id === id) return { study, table, row, run };
  return undefined;
}

/** What the page holds of a study's runs: {runs: {id: run}, items: {key: {ids, golds}}}. */
async function detailsOf(name) {
  if (!unpacked.has(name)) {
    const packed = document.querySelector(`script[data-study="${CSS.escape(name)}"]`).textContent;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(name, new Response(stream).json());
  }
  return unpacked.get(name);
}

/** An element: its name, attributes (on* are listeners, null ones left out), and children, texts as text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A score as the tables of the report show it: percent with one decimal, anything else with three. */
function shown(value, percent, sign = "") {
  if (value === null || value === undefined) return "–";
  const text = percent ? d3.format(`${sign}.1f`)(value * 100) : d3.format(`${sign}.3f`)(value);
  return text.replace("−", "-").replace(/^-(0\.?0*)$/, sign ? "+$1" : "$1"); // nothing rounds to minus zero
}

/** Score and standard error, as nodes. */
function scored(metric, percent) {
  if (!metric) return ["–"];
  const error = metric.stderr === null ? "" : ` ± ${shown(metric.stderr, percent)}`;
  return [shown(metric.score, percent), make("span", { class: "error" }, error)];
}
