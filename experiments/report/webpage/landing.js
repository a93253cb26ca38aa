// The first screen: for each model and suite the best merge, over its control and over Task Arithmetic, and the lab book.
"use strict";

/** Every answer of the page: {study, table, mean, answer, row, reference}. */
function everyAnswer() {
  return DATA.studies.flatMap((study) => study.tables.flatMap((table) => table.answers.map((answer) => ({
    study, table, answer, mean: table.means.find((one) => one.name === answer.mean), row: table.rows[answer.best],
    reference: answer.reference === null ? null : table.rows[answer.reference] }))));
}

function landing() {
  const found = everyAnswer();
  const groups = new Map();
  for (const one of found) {
    const key = `${one.table.model} on ${one.table.suite}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  // The newest entry of the lab book comes first, and of one entry the study that it links first.
  const age = ({ study }) => study.entry ?? DATA.log.length;
  const place = ({ study }) => (DATA.log[study.entry]?.studies.indexOf(study.name) ?? 0);
  const leading = [...groups.values()].flatMap((group) => {
    const [first] = inOrder(group, (one) => age(one) * 1e6 - one.answer.of, false);
    return group.filter((one) => one.table === first.table).map((one) => ({ ...one, others: unique(group.map((other) => other.study)).filter((study) => study !== one.study) }));
  });
  const list = make("div");
  const draw = () => {
    const query = address().words.get("q") ?? "";
    const rows = found.filter((one) => matches(textOf(one), query));
    list.replaceChildren(rows.length ? sortable(answerColumns(false), rows, { caption: "Every study", kind: "answers", word: "sort" })
      : make("p", {}, `No study has all of: ${query}`));
  };
  draw();
  return [make("h1", {}, "What merges best here, and by how much"),
    make("p", { class: "said" }, "A row for each model and suite, of the study that the lab book wrote about last. ",
      make("span", { class: "better" }, "Better"), " and ", make("span", { class: "worse" }, "worse"),
      ": distinguishable from 0 over several families of experts, corrected for all that was compared. Undecided is not equal: a difference "
      + "below the detectable one (80 % power) may be there. One family says nothing of other experts. "
      + "The best is chosen on the items that score it, which flatters it."),
    sortable(answerColumns(true), inOrder(leading, (one) => age(one) * 1e6 + place(one), false), { caption: "The best merge of each model and suite", kind: "answers", word: "first" }),
    make("h2", {}, "Every study"),
    make("div", { class: "controls" }, searchBox("search", draw)), list];
}

function textOf({ study, table, row, mean }) {
  const methods = table.rows.flatMap((one) => [one.merger, one.scaling, ...one.names]);
  return unique([study.name, `${table.model} on ${table.suite}`, mean.shown, ...row.names, ...methods, table.said, DATA.log[study.entry]?.title]).join(" ");
}

function answerColumns(first) {
  const studies = { id: "study", name: first ? "model on suite" : "study", label: "", text: true, kind: "text where", cell: (one) => whereabouts(one, first),
    key: ({ study, table }) => (first ? `${table.model} ${table.suite}` : study.name) };
  const columns = [studies,
    { id: "best", name: "best merge", label: "best", text: true, kind: "text", cell: bestOf, key: ({ row }) => row.names.join(" ") },
    { id: "score", name: "score", sub: "± items", label: "score", down: true, kind: "score", cell: ({ row, mean }) => [...scored(row.means[mean.name], mean.higher), make("small", {}, unit(mean))],
      key: ({ row, mean }) => row.means[mean.name][0] * (mean.higher ? 1 : -1) },
    { id: "uniform", name: "Δ to its uniform control", sub: "[95 %]", label: "Δ to its uniform control", down: true, kind: "diff", cell: overUniform,
      key: ({ answer, mean }) => gain(answer.uniform, mean) },
    { id: "arithmetic", name: "Δ to Task Arithmetic, uniform", sub: "[95 %]", label: "Δ to Task Arithmetic, uniform", down: true, kind: "diff", cell: overArithmetic,
      key: ({ answer, mean }) => gain(answer.against, mean) },
  ];
  if (DATA.log.length) columns.push({ id: "log", name: "what the lab book says", label: "lab book", text: true, kind: "text book", cell: (one) => [make("div", { class: "clamp" }, said(one.study, one.table))], key: ({ study }) => study.entry });
  return columns;
}

function whereabouts({ study, table, others, row }, first) {
  const link = (one) => make("a", { href: `#/study/${one.name}` }, ...breakable(one.name));
  const setting = `${table.model} on ${table.suite}`;
  const count = row.models > 1 ? `${row.models} ${table.repeated}` : "one model";
  if (!first) return [link(study), make("small", {}, `${setting}, ${count}`)];
  return [make("b", {}, setting), make("small", {}, "study ", link(study), `, ${count}`),
    others.length ? make("details", {}, make("summary", {}, `${others.length} more ${others.length > 1 ? "studies" : "study"}`),
      others.map((one) => make("div", {}, link(one)))) : null];
}

function unit(mean) {
  return mean.higher ? `% ${mean.shown}` : `${mean.shown} ↓`;
}

function bestOf({ row, answer }) {
  return [make("b", {}, row.names[0]), ` ${row.names[1]}`, make("small", {}, `best of ${answer.of} ${answer.of > 1 ? "merges" : "merge"}`)];
}

function overUniform({ answer, mean }) {
  if (answer.control) return [make("span", { class: "undecided" }, "the best is uniform itself")];
  return answer.uniform ? compared(answer.uniform, mean.higher, true) : [make("span", { class: "undecided" }, "no control in this study")];
}

function overArithmetic({ answer, mean }) {
  const how = answer.how ? make("small", {}, answer.how) : null;
  if (answer.reference === null) return [make("span", { class: "undecided" }, "not in this study")];
  if (answer.reference === answer.best) return [make("span", { class: "undecided" }, "the best is this itself"), how];
  return answer.against ? [...compared(answer.against, mean.higher, true), how] : [make("span", { class: "undecided" }, "other seeds, not paired"), how];
}

/** How much better, whichever way better is. */
function gain(found, mean) {
  return found ? found.score * (mean.higher ? 1 : -1) : null;
}

/** What the lab book says in a sentence, which leads to its entry. */
function said(study, table) {
  const entry = DATA.log[study.entry];
  if (!entry) return [make("span", { class: "undecided" }, "no entry links this study")];
  return [make("a", { href: `#/log/${study.entry}`, title: `${entry.date}: ${entry.title}` }, table.said || entry.title)];
}

/** The entry's title, which leads to it, and that sentence. */
function cited(study, table) {
  const entry = DATA.log[study.entry];
  return [make("a", { href: `#/log/${study.entry}` }, entry.title), table.said ? `: ${table.said}` : ""];
}

function logPage(at) {
  const entry = DATA.log[Number(at)];
  if (!entry) return [make("h1", {}, "No such entry"), make("p", {}, "The lab book on this page has no such entry.")];
  const known = entry.studies.filter(studyOf);
  return [make("h1", {}, entry.title), make("p", { class: "said" }, `Lab book, ${entry.date}. `,
    known.length ? ["About ", known.map((name) => make("a", { href: `#/study/${name}`, class: "listed" }, name))] : null),
  make("pre", { class: "entry", tabindex: 0 }, entry.text)];
}
