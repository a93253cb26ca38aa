// Tables that sort, search boxes, pages of long lists; a box that says when its table is wider than it.
"use strict";

/**
 * columns: {id, name, sub (below it), text (left-aligned), down (the first click puts the largest first; else the smallest), cell(row)
 * -> nodes, key(row) -> value to sort by, null last, title}.
 * The first click puts the best first, the second the worst, a third restores the given order. word: of the address, which
 * keeps the choice. rowClass: in the given order. pinned: how many first columns stay in view. drawn: told the order.
 */
function sortable(columns, rows, { caption, rowClass = () => null, pinned = 0, word = "sort", ordered = () => {}, kind = "" } = {}) {
  let [column, turned] = asked();
  const body = make("tbody");
  const heads = columns.map((one) => make("th", { scope: "col", class: one.text ? `text ${one.kind ?? ""}` : one.kind, "aria-sort": "none", title: one.title },
    make("button", { type: "button", onclick: () => turn(one) }, breakable(one.name), one.sub ? make("span", { class: "error" }, one.sub) : null)));
  const table = make("table", { class: `${kind} ${pinned ? "pinned" : ""}`.trim() || null, "data-pinned": pinned || null },
    make("caption", { class: "unseen" }, caption ?? ""), make("thead", {}, make("tr", {}, heads)), body);

  function asked() {
    const said = address().words.get(word) ?? "";
    return [columns.find((one) => one.id === said.replace(/^-/, "")) ?? null, said.startsWith("-")];
  }

  function turn(one) {
    if (column !== one) [column, turned] = [one, false];
    else if (!turned) turned = true;
    else [column, turned] = [null, false];
    remember({ [word]: column && `${turned ? "-" : ""}${column.id}` });
    draw();
  }

  function draw() {
    const down = column && Boolean(column.down) !== turned;
    heads.forEach((head, i) => head.setAttribute("aria-sort", columns[i] !== column ? "none" : down ? "descending" : "ascending"));
    const found = column ? inOrder(rows, column.key, down) : rows;
    body.replaceChildren(...found.map((row) => make("tr", { class: column ? null : rowClass(row) },
      columns.map((one) => make("td", { class: one.kind ?? (one.text ? "text" : null), "data-label": one.label ?? null }, one.cell(row))))));
    ordered(found);
  }

  draw();
  return boxed(table, caption);
}

function inOrder(rows, key, down) {
  const keyed = rows.map((row) => ({ row, value: key(row) }));
  keyed.sort(({ value: x }, { value: y }) => {
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  });
  return keyed.map(({ row }) => row);
}

/** A box that scrolls sideways where its content is wider, and then says so, at its edge and in words. */
function boxed(content, label) {
  const box = make("div", { class: "scroll", role: "region", "aria-label": label, tabindex: 0 }, content);
  const cue = make("p", { class: "cue", hidden: true }, "Wider than the window: scroll sideways for the other columns →");
  const outer = make("div", { class: "box" }, cue, box);
  const look = () => {
    const more = box.scrollWidth > box.clientWidth + 1;
    cue.hidden = !more;
    outer.classList.toggle("wide", more);
    outer.classList.toggle("end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
    if (content.dataset.pinned) pin(content);
  };
  box.addEventListener("scroll", look, { passive: true });
  const watch = new ResizeObserver(look);
  watch.observe(box);
  watch.observe(content);
  return outer;
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

/** A search box whose words are kept in the address. */
function searchBox(label, draw, word = "q") {
  return make("label", {}, label, make("input", { type: "search", id: word, value: address().words.get(word) ?? "", autocomplete: "off",
    oninput: (event) => { remember({ [word]: event.target.value, page: null }); draw(); } }));
}

/** What one column of rows is cut into; the page is kept in the address. */
function paged(rows, word, draw, size = 25) {
  const last = Math.max(1, Math.ceil(rows.length / size));
  const at = Math.min(last, Math.max(1, Number(address().words.get(word)) || 1));
  const to = (page) => make("button", { type: "button", disabled: page < 1 || page > last, "aria-label": `page ${page}`,
    onclick: () => { remember({ [word]: page > 1 && String(page) }); draw(); } }, page < at ? "← back" : "on →");
  const from = (at - 1) * size;
  const pager = last < 2 ? null : make("nav", { class: "pager", "aria-label": "Pages" }, to(at - 1),
    `${from + 1} to ${Math.min(rows.length, from + size)} of ${rows.length}`, to(at + 1));
  return { part: rows.slice(from, from + size), pager };
}
