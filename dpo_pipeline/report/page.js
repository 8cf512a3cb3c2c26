"use strict";
document.documentElement.classList.add("scripted");

async function draw(place) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  try {
    await window.vegaEmbed(place, spec, {
      renderer: "svg",
      actions: false,
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

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

Promise.all(Array.from(document.querySelectorAll("[data-spec]"), draw)).then(() => {
  document.documentElement.dataset.drawn = "all";
});
