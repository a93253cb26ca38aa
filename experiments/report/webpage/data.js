// The page's data and its address; numbers as text; elements. Tables are there at once, single runs when one is opened.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const unpacked = new Map();
// "T = 0.1" stays in one line.
for (const study of DATA.studies) for (const table of study.tables) for (const row of table.rows)
  row.names = row.names.map((name) => name && name.replaceAll(" = ", "\u00a0=\u00a0"));

function studyOf(name) {
  return DATA.studies.find((one) => one.name === name);
}

/** Where a run is listed, in the named study if it is there: {study, table, row, run}, or undefined. */
function listed(id, name) {
  for (const study of [...DATA.studies].sort((a, b) => (b.name === name) - (a.name === name)))
    for (const table of study.tables)
      for (const row of table.rows)
        for (const run of row.runs) if (run.id === id) return { study, table, row, run };
  return undefined;
}

/** What the page holds of a study besides its tables: {csv, runs: {id: run}, items: {key: ...}}. */
async function detailsOf(name) {
  if (!unpacked.has(name)) {
    const packed = document.querySelector(`script[data-study="${CSS.escape(name)}"]`).textContent;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(name, new Response(stream).json());
  }
  return unpacked.get(name);
}

/** A run and the questions of its study, which lie with the first study that lists the run. */
async function detailsOfRun(id) {
  const held = await detailsOf(listed(id).study.name);
  return { run: held.runs[id], items: held.items };
}

/** The address as {parts, words}: #/study/NAME?q=ties is ["study", "NAME"] and q=ties. */
function address() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  return { parts: path.split("/").slice(1).map(decodeURIComponent), words: new URLSearchParams(query) };
}

/** Put words into the address, without a step of their own on the way back; an empty value takes the word out. */
function remember(changes) {
  const { words } = address();
  for (const [name, value] of Object.entries(changes)) value ? words.set(name, value) : words.delete(name);
  const query = String(words);
  history.replaceState(null, "", `${location.hash.split("?")[0] || "#/"}${query && `?${query}`}`);
}

/** An element: its name, attributes (on* are listeners, null ones left out), and children, texts as text. */
function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A score as the tables of the report show it: percent with one decimal, anything else with three. */
function shown(value, percent, signed = false) {
  if (value === null || value === undefined) return "–";
  const text = percent ? (value * 100).toFixed(1) : value.toFixed(3);
  const plain = text.replace(/^-(0\.?0*)$/, "$1"); // nothing rounds to minus zero
  return signed && !plain.startsWith("-") ? `+${plain}` : plain;
}

/** Score and one standard error of each kind: [score, over items, over models or null]. both: whether the column has both. */
function scored(found, percent, both = false) {
  if (!found) return ["–"];
  const [score, items, models] = found;
  return [shown(score, percent), error(items, percent), both ? error(models, percent) : null];
}

function error(value, percent) {
  return make("span", { class: "error" }, ` ± ${shown(value, percent)}`);
}

/** A difference with its interval and a word: colour, sign and word agree on better and worse. long: with what could have been seen. */
function compared(found, higher, long = false) {
  if (!found) return ["–"];
  const tone = toneOf(found);
  const interval = found.low === null ? "" : ` [${shown(found.low, higher, true)}, ${shown(found.high, higher, true)}]`;
  return [make("span", { class: `difference ${tone}` }, shown(found.score, higher, true)),
    make("span", { class: "interval" }, interval),
    make("span", { class: `verdict ${tone}`, title: verdict(found) }, ` ${long ? verdict(found) : found.word}`)];
}

/** The verdict of the analysis in words. */
function verdict(found) {
  return found.word === "better" || found.word === "worse" || found.from === null ? found.word : `${found.word}, detectable from ${found.from} on`;
}

function toneOf(found) {
  return found.word === "better" || found.word === "worse" ? found.word : "undecided";
}

function probability(found) {
  if (!found) return "–";
  return found.p_holm < 0.001 ? "<0.001" : found.p_holm.toFixed(3);
}

function unique(values) {
  return [...new Set(values)];
}

/** Whether a text has every word of a search, in any order and case. */
function matches(text, query) {
  const lower = text.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
}
