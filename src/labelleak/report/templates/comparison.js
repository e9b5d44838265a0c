"use strict";
// The table is whole without this script, which filters, sorts and shows other scores.
const content = JSON.parse(document.getElementById("data").textContent);
const filters = document.getElementById("filters");
const table = document.getElementById("heat");
const rows = [...table.tBodies[0].rows];
const heads = [...table.tHead.rows[0].cells].slice(1);
const totals = [...table.tFoot.rows[0].cells].slice(1);
const STEPS = document.querySelectorAll(".scale i").length - 1;
const state = { sort: null, down: true };

function shown(value) {
  if (value === null) return "–";
  if (value === 0 || value === 1) return `${value}`;
  return value.toFixed(3).replace("0.", ".").replace("-", "−");
}
const level = (value) => Math.min(STEPS, Math.max(0, Math.floor(STEPS * value + 0.5)));

function bestOf(values, chosen) {
  const own = values.filter((value, column) => value !== null && chosen[column] && !content.baselines[column]);
  const highest = Math.max(0, ...own);
  return highest > 0 ? highest : null;
}

function draw() {
  const measure = content.measures[filters.elements.measure.value];
  const chosen = content.baselines.map(() => true);
  for (const box of filters.querySelectorAll("input[name=attack]")) chosen[box.value] = box.checked;
  const wins = chosen.map(() => 0);
  rows.forEach((row, place) => {
    row.hidden = ["kind", "network", "data"].some((trait) => {
      const wanted = filters.elements[trait];
      return wanted && wanted.value && !content.settings[place][trait].includes(wanted.value);
    });
    const values = measure.values[place];
    const best = bestOf(values, chosen);
    values.forEach((value, column) => {
      const cell = row.cells[column + 1];
      const link = cell.querySelector("a");
      cell.hidden = !chosen[column];
      const won = best !== null && value === best && !content.baselines[column];
      cell.classList.toggle("best", won);
      if (won && !row.hidden) wins[column] += 1;
      if (!link) return;
      cell.className = cell.className.replace(/\bh\d+\b/, "");
      if (value !== null) cell.classList.add(`h${level(value)}`);
      const text = link.querySelector(".value");
      text.dataset.first ??= text.textContent;
      text.textContent = value === null && text.dataset.first === "fails" ? "fails" : shown(value);
    });
  });
  heads.forEach((head, column) => {
    head.hidden = totals[column].hidden = !chosen[column];
    const text = totals[column].querySelector(".wins");
    if (text) text.textContent = wins[column];
    if (state.sort === column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  document.getElementById("meaning").textContent = `${measure.title[0].toUpperCase()}${measure.title.slice(1)}: ${measure.meaning}`;
  const number = chosen.filter(Boolean).length;
  document.getElementById("amount").textContent = number === chosen.length ? `all ${number}` : `${number} of ${chosen.length}`;
  order(measure);
}

// Settings without a score of that attack come last, whichever way it is sorted.
function order(measure) {
  const places = rows.map((_, place) => place);
  if (state.sort !== null) {
    const of = (place) => measure.values[place][state.sort];
    places.sort((a, b) => (of(a) === null) - (of(b) === null)
      || (state.down ? of(b) - of(a) : of(a) - of(b)) || a - b);
  }
  table.tBodies[0].append(...places.map((place) => rows[place]));
}

function sortBy(column, down) {
  state.sort = column;
  state.down = down;
  filters.elements.sort.value = column === null ? "" : column;
  draw();
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  button.addEventListener("click", () => {
    if (state.sort === column && !state.down) sortBy(null, true);
    else sortBy(column, !(state.sort === column && state.down));
  });
  head.replaceChildren(button);
});
filters.addEventListener("change", (event) => {
  const { name, value } = event.target;
  if (name === "sort") sortBy(value === "" ? null : Number(value), true);
  else draw();
});
filters.addEventListener("reset", () => setTimeout(() => sortBy(null, true)));
filters.hidden = false;
draw();
