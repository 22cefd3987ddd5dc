"use strict";

// --- filter: every element with data-kind is shown or not; blocks and sections without any left go with them -------

const fields = [...document.querySelectorAll("#filter [name]")];
const items = [...document.querySelectorAll("[data-kind]")];
const blocks = [...document.querySelectorAll("[data-block]")];
const kinds = { row: "rows", run: "runs" };

function matches(item) {
  return fields.every(({ name, value }) => {
    if (name !== "text") return !value || item.dataset[name] === value;
    return value.toLowerCase().split(/\s+/).every((word) => item.dataset.text.includes(word));
  });
}

function filter() {
  for (const item of items) item.classList.toggle("off", !matches(item));
  for (const block of blocks) block.classList.toggle("off", !block.querySelector("[data-kind]:not(.off)"));
  document.getElementById("count").value = Object.entries(kinds).map(([kind, name]) => {
    const all = items.filter((item) => item.dataset.kind === kind);
    return `${all.filter((item) => !item.classList.contains("off")).length} of ${all.length} ${name}`;
  }).join(", ");
}

function toHash() {
  const chosen = fields.filter(({ value }) => value).map(({ name, value }) => [name, value]);
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
}

function fromHash() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) {
    field.value = chosen.get(field.name) ?? "";
    if (field.selectedIndex === -1) field.value = "";  // a choice that this report does not have
  }
  filter();
}

const form = document.getElementById("filter");
for (const kind of ["input", "change"]) form.addEventListener(kind, () => { filter(); toHash(); });
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", fromHash);
fromHash();

// --- sorting: a click on a heading, undefined values last in both directions ----------------------------------------

function sort(heading) {
  const body = heading.closest("table").tBodies[0];
  const numeric = "numeric" in heading.dataset;
  const first = numeric ? "descending" : "ascending";
  const second = numeric ? "ascending" : "descending";
  const direction = heading.getAttribute("aria-sort") === first ? second : first;
  const sign = direction === "ascending" ? 1 : -1;
  const key = (row) => row.cells[heading.cellIndex].dataset.value ?? "";
  const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : sign * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}

// --- predictions: the task whose pictures are shown ------------------------------------------------------------------

for (const choice of document.querySelectorAll("select.after")) {
  choice.addEventListener("change", () => {
    for (const row of choice.closest("[data-block]").querySelectorAll("[data-after]")) {
      row.hidden = row.dataset.after !== choice.value;
    }
  });
}

// --- tooltips of the charts' points ----------------------------------------------------------------------------------

const tip = document.getElementById("tip");
addEventListener("pointermove", (event) => {
  const point = event.target.closest?.("[data-tip]");
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = point.dataset.tip;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.max(event.clientY - tip.offsetHeight - 8, 4)}px`;
});
