"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Tables: a click on a heading sorts by its column, a second click reverses the order; missing values stay last.
for (const table of all("table[data-sortable]")) {
  const heads = all("thead th", table), body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    body.append(...all("tr", body).sort((a, b) => compare(key(a), key(b), down ? -1 : 1)));
  }));
}
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const gap = Number(a) - Number(b);
  return sign * (Number.isNaN(gap) ? a.localeCompare(b) : gap);
}

// Trials: the one under the pointer, or selected by arrow keys, is highlighted in all charts and in the table.
const selected = document.getElementById("selected");
function highlight(trial) {
  all(".highlighted").forEach((element) => element.classList.remove("highlighted"));
  if (trial === undefined) return;
  const parts = all(`[data-trial="${CSS.escape(trial)}"]`);
  parts.forEach((element) => element.classList.add("highlighted"));
  const title = parts.map((element) => element.querySelector(":scope > title")).find(Boolean);
  if (selected && title) selected.textContent = title.textContent;
}
document.addEventListener("pointerover", (event) => {
  const part = event.target.closest?.("[data-trial]");
  if (part || !event.target.closest?.("[data-arrow-keys]")) highlight(part?.dataset.trial);
});
for (const chart of all("[data-arrow-keys]")) {
  const trials = all("[data-trial]", chart).map((part) => part.dataset.trial).reverse();
  let at = -1;
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !trials.length) return;
    event.preventDefault();
    at = (at + step + trials.length) % trials.length;
    highlight(trials[at]);
  });
  chart.addEventListener("blur", () => highlight());
}

for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// The link of the section that is read is marked, and kept in sight where the navigation is wider than the screen.
const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
const inSight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    links.forEach((link, id) => (id === target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    const link = links.get(target.id), list = link.closest("ul");
    list.scrollLeft = link.offsetLeft - list.clientWidth / 2;
  }
}, { rootMargin: "-20% 0px -75% 0px" });
all("main section").filter((section) => links.has(section.id)).forEach((section) => inSight.observe(section));

// Long lists: a page of images at a time. Long tables: searched by any text in their rows.
const PAGE = matchMedia("(max-width: 620px)").matches ? 6 : 49; // full rows
for (const list of all("ul[data-page]")) {
  const items = [...list.children], more = document.createElement("button");
  let shown = PAGE;
  const show = () => {
    items.forEach((item, k) => { item.hidden = k >= shown; });
    more.hidden = shown >= items.length;
  };
  more.type = "button";
  more.className = "more";
  more.textContent = "Show more";
  more.addEventListener("click", () => { shown += PAGE; show(); });
  list.after(more);
  show();
}
for (const field of all("[data-search]")) {
  field.addEventListener("input", () => {
    const text = field.value.trim().toLowerCase();
    all("tr:not(thead tr)", field.parentElement).forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(text); });
  });
}

// Mistakes: sorted and filtered in place, a page of images at a time.
const atlas = document.getElementById("mistakes");
if (atlas) {
  const items = all("li.image", atlas), more = document.getElementById("more");
  const names = all("#class-names option").map((option) => option.value.toLowerCase()); // with many classes
  const picked = (name) => document.getElementById(name).value;
  const fitsClass = (wanted, index) => !wanted || index === wanted || (names[index] ?? "").includes(wanted.toLowerCase());
  let shown = PAGE;
  const arrange = () => {
    const [key, sign] = picked("sort").split(":"), label = picked("true"), prediction = picked("predicted");
    const fits = (item) => fitsClass(label, item.dataset.true) && fitsClass(prediction, item.dataset.predicted);
    items.sort((a, b) => compare(a.dataset[key], b.dataset[key], Number(sign)) || compare(a.dataset.loss, b.dataset.loss, -1));
    const fitting = items.filter(fits);
    items.forEach((item) => { item.hidden = true; });
    fitting.slice(0, shown).forEach((item) => { item.hidden = false; });
    atlas.append(...items);
    document.getElementById("count").textContent = `${Math.min(shown, fitting.length)} of ${fitting.length} shown`;
    more.hidden = shown >= fitting.length;
  };
  for (const name of ["sort", "true", "predicted"]) {
    document.getElementById(name).addEventListener("input", () => { shown = PAGE; arrange(); });
  }
  more.addEventListener("click", () => { shown += PAGE; arrange(); });
  arrange();
}

// Cells of the confusion matrix open their images.
const dialog = document.querySelector("dialog");
for (const cell of all("button[data-cell]")) {
  cell.addEventListener("click", () => {
    const images = all(`li.image[data-cell="${cell.dataset.cell}"]`).map((item) => item.cloneNode(true));
    images.forEach((image) => { image.hidden = false; });
    dialog.querySelector("h2").textContent = cell.title;
    dialog.querySelector("p").textContent = `${images.length} of ${cell.dataset.count} shown`;
    dialog.querySelector("ul").replaceChildren(...images);
    dialog.showModal();
  });
}
dialog?.querySelector("button").addEventListener("click", () => dialog.close());
dialog?.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
