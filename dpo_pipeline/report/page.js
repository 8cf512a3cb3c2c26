"use strict";
document.documentElement.classList.add("scripted");

async function draw(place) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  try {
    await window.vegaEmbed(place, spec, {
      renderer: "svg",
      actions: false,
      ast: true, // interpreted, so that the page needs no unsafe-eval
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
    });
    place.dataset.state = "drawn";
  } catch (error) {
    place.dataset.state = "failed";
    place.textContent = "This chart could not be drawn: " + error.message;
    console.error(error);
  }
}

function compare(a, b) {
  const x = a.value, y = b.value;
  if (x === "" || y === "") return (x === "") - (y === "");
  const difference = Number(x) - Number(y);
  return Number.isNaN(difference) ? x.localeCompare(y, undefined, { numeric: true }) : difference;
}

function sortBy(header) {
  const row = header.parentElement;
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of row.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const column = Array.prototype.indexOf.call(row.children, header);
  const body = row.closest("table").tBodies[0];
  const rows = Array.from(body.rows, (each, index) => {
    const cell = each.cells[column];
    return { each, index, value: cell.dataset.value ?? cell.textContent };
  });
  const empty = (item) => item.value === "";
  rows.sort((a, b) => {
    const order = compare(a, b);
    return (descending && !empty(a) && !empty(b) ? -order : order) || a.index - b.index;
  });
  body.append(...rows.map((item) => item.each));
}

function cellsOf(row) {
  return Array.from(row.cells, (cell) => {
    const folded = cell.querySelector("details");
    const whole = folded ? folded.textContent.slice(folded.querySelector("summary").textContent.length) : cell.textContent;
    const text = cell.dataset.value ?? whole.trim();
    // A spreadsheet would run a text that begins like a formula.
    const isFormula = cell.classList.contains("words") && /^[=+\-@\t\r]/.test(text);
    return '"' + (isFormula ? "'" : "") + text.replaceAll('"', '""') + '"';
  });
}

function csvOf(table) {
  return Array.from(table.rows, (row) => cellsOf(row).join(",") + "\r\n").join("");
}

function save(table, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
  link.download = name + ".csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function search(table, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
}

const SEARCHED_FROM = 8; // rows

function addTools(frame, index) {
  const table = frame.querySelector("table");
  if (table.tHead === null) return;
  const bar = document.createElement("div");
  bar.className = "tools";
  if (table.tBodies[0].rows.length >= SEARCHED_FROM) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Search";
    field.setAttribute("aria-label", "Show only the rows of this table that hold");
    field.addEventListener("input", () => search(table, field.value));
    bar.append(field);
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Save as CSV";
  const section = frame.closest("section").id;
  button.addEventListener("click", () => save(table, section + "-" + (index + 1)));
  const hint = document.createElement("span");
  hint.className = "hint";
  hint.textContent = "This table scrolls sideways.";
  bar.append(button, hint);
  frame.before(bar);
  const fit = () => { hint.hidden = frame.scrollWidth <= frame.clientWidth; };
  new ResizeObserver(fit).observe(frame);
  fit();
}

document.querySelectorAll(".wide").forEach(addTools);

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

Promise.all(Array.from(document.querySelectorAll("[data-spec]"), draw)).then(() => {
  document.documentElement.dataset.drawn = "all";
});
