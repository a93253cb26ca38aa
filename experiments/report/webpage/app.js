// What the address says is what the page shows: #/, #/study/NAME?merger=M&scaling=S&q=WORDS&sort=COLUMN, #/run/ID,
// #/compare/ID/ID, #/log/N.
"use strict";

async function show() {
  const { parts: [kind, ...names] } = address();
  const main = document.getElementById("main");
  let content;
  if (kind === "run") content = await runPage(names[0]);
  else if (kind === "compare") content = await comparePage(names[0], names[1]);
  else if (kind === "log") content = logPage(names[0]);
  else if (kind === "study") content = studyOf(names[0]) ? studyPage(studyOf(names[0])) : [make("h1", {}, "No such study"), make("p", {}, `This page holds no study ${names[0]}.`)];
  else content = landing();
  main.replaceChildren(...content.filter(Boolean));
  const at = kind === "run" || kind === "compare" ? listed(names[0], address().words.get("study")) : null;
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
