"use strict";
// Everything shown is made of text nodes and attributes: a client's name is never markup.
const NAMES = ["round", "client", "label", "framework", "verdict", "action", "attack", "accuracy",
  "exact", "certified", "restored", "present", "epsilon", "delta", "limit", "reason", "flags",
  "time", "notes", "classes", "run", "advantage", "advantageLimit", "known", "after"];
const TEXTS = ["client", "label", "framework", "verdict", "action", "attack", "reason", "time", "run", "after"];
const GRAVITY = ["within", "inconclusive", "failed", "over"];
const PAGE = 100;
const MOST_LINES = 8;
// Length of a dash, where lines lie on one another.
const TURN = 12;
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#8c6bb1"];

const content = JSON.parse(document.getElementById("data").textContent);
const audits = content.rows.map((row, number) => {
  const audit = { number };
  NAMES.forEach((name, place) => { audit[name] = row[place]; });
  for (const name of TEXTS) audit[name] = content.texts[audit[name]];
  for (const name of ["flags", "notes"]) audit[name] = audit[name].map((text) => content.texts[text]);
  return audit;
});

const byId = (id) => document.getElementById(id);
const filters = byId("filters");
const state = { page: 0, sort: "time", down: true, open: null };

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "title", "g"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const percent = (share, digits = 1) => (share === null ? "–" : `${(100 * share).toFixed(digits)}%`);
const plain = (value) => (value === null || value === "" ? "–" : `${value}`);
const short = (number) => (number === null ? "–" : `${Number(number.toPrecision(3))}`);
const named = (text) => text || "(none)";
const order = new Intl.Collator("en", { numeric: true });
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
  : order.compare(`${a}`, `${b}`));
const distinct = (name, among) => [...new Set(among.map((audit) => audit[name]))].sort(compare);

// The newest first.
const runs = [...new Set(audits.slice().sort((a, b) => compare(b.time, a.time)).map((audit) => audit.run))];
// What a line or a row of the map is about: the client, and what else there is more than one of.
function subjectIn(among) {
  const [labels, several] = [distinct("label", among).length > 1, distinct("run", among).length > 1];
  return (audit) => [audit.client, ...(labels ? [named(audit.label)] : []), ...(several ? [`run ${named(audit.run)}`] : [])].join(", ");
}

function fillFilters() {
  for (const select of filters.querySelectorAll("select")) {
    const values = select.name === "run" ? runs : distinct(select.name, audits);
    select.append(element("option", { value: "" }, `all (${values.length})`));
    values.forEach((value, place) => select.append(element("option", { value: place + 1 }, named(value))));
    select.disabled = values.length < 2;
    select.values = values;
    if (select.name === "run" && values.length > 1) select.value = 1;
  }
}

function chosen() {
  const wanted = [...filters.querySelectorAll("select")].filter((select) => select.value)
    .map((select) => [select.name, select.values[select.value - 1]]);
  return audits.filter((audit) => wanted.every(([name, value]) => audit[name] === value));
}

function grouped(among, key) {
  const groups = new Map();
  for (const audit of among) {
    const name = key(audit);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(audit);
  }
  return groups;
}

// ---- lines: the share restored by round, and epsilon where it is known

function seriesOf(among, value) {
  const known = among.filter((audit) => audit[value] !== null);
  const several = distinct("label", known).length > 1;
  const each = grouped(known, subjectIn(known));
  const single = each.size <= MOST_LINES;
  const groups = single ? each : grouped(known, (audit) => (several ? named(audit.label) : "all clients"));
  return [...groups].map(([name, list]) => ({
    name: single ? name : `${name}: median, least and most`,
    points: [...grouped(list, (audit) => audit.round)].sort((a, b) => a[0] - b[0]).map(([round, here]) => {
      const values = here.map((audit) => audit[value]).sort((a, b) => a - b);
      return { round, low: values[0], high: values[values.length - 1],
        middle: single ? values[values.length - 1] : values[Math.floor(values.length / 2)] };
    }),
  }));
}

// The limits of one measure, and whose they are: sites may be judged by different ones.
function limitsIn(name, among) {
  const limits = distinct(name, among);
  const held = limits.filter((limit) => limit !== null);
  return [held, held.length < limits.length ? "the limit of some policies" : "the policy's limit"];
}

// One color for a series in all charts.
const colorOf = (name, names) => COLORS[names.indexOf(name) % COLORS.length];

function lineChart(title, series, rounds, top, [limits, whose], write, height, names) {
  // As wide as it is shown, so that text has its own size on a phone, too.
  const width = Math.min(1000, Math.max(320, byId("lines").clientWidth || 1000));
  const [left, right, up, down] = [56, 16, 12, 30];
  const [first, last] = [rounds[0], rounds[rounds.length - 1]];
  const x = (round) => left + (last > first ? (round - first) / (last - first) : 0.5) * (width - left - right);
  const y = (value) => height - down - (value / top) * (height - up - down);
  const chart = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let part = 0; part <= 4; part += 1) {
    const value = (top * part) / 4;
    chart.append(element("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--grid)" }),
      element("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, write(value, 0)));
  }
  const every = Math.max(1, Math.ceil((50 * rounds.length) / width));
  rounds.filter((_, place) => place % every === 0).forEach((round) => {
    chart.append(element("text", { x: x(round), y: height - 10, "text-anchor": "middle" }, `${round}`));
  });
  series.forEach(({ name, points }) => {
    const color = colorOf(name, names);
    if (points.some((point) => point.low !== point.high)) {
      const edge = [...points.map((point) => [point.round, point.high]),
        ...points.slice().reverse().map((point) => [point.round, point.low])];
      chart.append(element("path", { fill: color, "fill-opacity": 0.18,
        d: `M${edge.map(([round, value]) => `${x(round)} ${y(value)}`).join("L")}Z` }));
    }
    // Lines that lie on one another take turns, so that each is seen.
    const same = series.filter((other) => JSON.stringify(other.points) === JSON.stringify(points));
    const turn = same.findIndex((other) => other.name === name);
    chart.append(element("path", { fill: "none", stroke: color, "stroke-width": 2,
      "stroke-dasharray": same.length > 1 ? `${TURN} ${TURN * (same.length - 1)}` : "none", "stroke-dashoffset": -TURN * turn,
      d: `M${points.map((point) => `${x(point.round)} ${y(point.middle)}`).join("L")}` }));
    if (points.length <= 40) {
      points.forEach((point) => chart.append(element("circle", { cx: x(point.round), cy: y(point.middle), r: 3.5, fill: color },
        element("title", {}, `${name}, round ${point.round}: ${write(point.middle)}`))));
    }
  });
  limits.forEach((limit) => chart.append(
    element("line", { x1: left, x2: width - right, y1: y(limit), y2: y(limit), stroke: "var(--over)", "stroke-width": 1.5, "stroke-dasharray": "7 5" }),
    element("text", { x: width - right, y: y(limit) - 5, "text-anchor": "end", class: "limit" }, `${whose}, ${percent(limit)}`)));
  return chart;
}

function drawLines(among) {
  const place = byId("lines");
  const rounds = distinct("round", among);
  const [shares, spent, known] = ["accuracy", "epsilon", "known"].map((value) => seriesOf(among, value));
  const names = [...new Set([...shares, ...spent, ...known].map(({ name }) => name))];
  if (!shares.length) {
    place.replaceChildren(element("p", {}, among.length ? "No shares: there are no true labels to compare with here." : "No audits."));
    return;
  }
  const legend = element("p", { class: "legend" }, ...names.map((name) => element("span", {},
    element("i", { style: `background: ${colorOf(name, names)}` }), name)));
  place.replaceChildren(legend, lineChart("Share of the labels restored, by round", shares, rounds, 1, limitsIn("limit", among), percent, 300, names));
  const gained = seriesOf(among, "advantage");
  if (gained.length) {
    place.append(element("h3", {}, "Share of what a guess without the update leaves open, by round"),
      lineChart("Advantage over a guess, by round", gained, rounds, 1, limitsIn("advantageLimit", among), percent, 240, names));
  }
  if (known.length) {
    place.append(element("h3", {}, "Share of the labels known after each round, from all rounds so far"),
      lineChart("Share of the labels known after each round", known, rounds, 1, [[]], percent, 240, names));
  }
  if (spent.length) {
    const top = Math.max(...spent.flatMap(({ points }) => points.map((point) => point.high))) || 1;
    place.append(element("h3", {}, "ε spent, by round"),
      lineChart("epsilon spent, by round", spent, rounds, top, [[]], short, 180, names));
  }
}

// ---- the map of clients and rounds

let cells = null;

function drawMap(among) {
  const canvas = byId("map");
  const rows = [...grouped(among, subjectIn(among))]
    .sort((a, b) => compare(a[1][0].client, b[1][0].client));
  const rounds = distinct("round", among);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const high = rows.length <= 30 ? 24 : rows.length <= 80 ? 16 : 12;
  const font = `${high > 16 ? 13 : 10}px system-ui, sans-serif`;
  const pen = canvas.getContext("2d");
  pen.font = font;
  const left = Math.min(260, Math.max(40, ...rows.map(([name]) => pen.measureText(name).width + 12)));
  const room = Math.max(200, canvas.parentElement.clientWidth - left - 14);
  const wide = Math.max(6, Math.min(72, Math.floor(room / Math.max(1, rounds.length))));
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [left + wide * rounds.length + 12, 22 + high * rows.length];
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  pen.scale(scale, scale);
  pen.font = font;
  pen.textBaseline = "middle";
  const column = new Map(rounds.map((round, place) => [round, place]));
  pen.fillStyle = color("soft");
  const every = Math.max(1, Math.ceil(28 / wide));
  rounds.forEach((round, place) => {
    if (place % every === 0) {
      pen.textAlign = "center";
      pen.fillText(`${round}`, left + (place + 0.5) * wide, 11);
    }
  });
  cells = { left, wide, high, rounds, rows: rows.map(() => []) };
  rows.forEach(([name, list], row) => {
    const up = 22 + row * high;
    pen.textAlign = "left";
    pen.fillStyle = color("ink");
    pen.fillText(name, 2, up + high / 2, left - 8);
    for (const [round, here] of grouped(list, (audit) => audit.round)) {
      const shown = here.reduce((a, b) => (graver(b, a) ? b : a));
      const place = column.get(round);
      cells.rows[row][place] = shown;
      drawCell(pen, shown, [left + place * wide, up, wide - 1, high - 1], color);
    }
  });
}

function graver(one, other) {
  const by = GRAVITY.indexOf(one.verdict) - GRAVITY.indexOf(other.verdict);
  return by ? by > 0 : (one.accuracy ?? -1) > (other.accuracy ?? -1);
}

function drawCell(pen, audit, [x, y, width, height], color) {
  if (audit.verdict === "failed") {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    pen.strokeStyle = color("failed");
    for (let way = -height; way < width; way += 5) {
      pen.moveTo(x + way, y + height);
      pen.lineTo(x + way + height, y);
    }
    pen.stroke();
    pen.restore();
  } else {
    const share = audit.accuracy ?? (audit.certified ? 1 : 0.3);
    pen.fillStyle = color(audit.verdict);
    pen.globalAlpha = 0.2 + 0.8 * share;
    pen.fillRect(x, y, width, height);
    pen.globalAlpha = 1;
    if (width >= 40 && height >= 16) {
      pen.textAlign = "center";
      pen.fillStyle = share > 0.6 ? color("paper") : color("ink");
      const text = audit.accuracy === null ? (audit.certified ? "proven" : "?") : `${Math.round(100 * share)}%`;
      pen.fillText(text, x + width / 2, y + height / 2 + 1);
    }
  }
}

function cellAt(event) {
  if (!cells) return null;
  const row = cells.rows[Math.floor((event.offsetY - 22) / cells.high)];
  return (row && row[Math.floor((event.offsetX - cells.left) / cells.wide)]) || null;
}

// ---- the table

// Columns that are left out where no audit has a value.
const OPTIONAL = new Set(["framework", "known", "epsilon"]);
const COLUMNS = [
  ["round", "round"], ["client", "client"], ["label", "audit"], ["framework", "framework"],
  ["attack", "attack"], ["verdict", "verdict"], ["action", "action"], ["accuracy", "accuracy"], ["advantage", "advantage"],
  ["known", "known so far"],
  ["exact", "exact"], ["restored", "labels restored"], ["epsilon", "ε"], ["flags", "flags"],
].filter(([name]) => !OPTIONAL.has(name) || audits.some((audit) => audit[name] !== null && audit[name] !== ""));
const FIGURES = new Set(["round", "accuracy", "advantage", "known", "epsilon"]);

function cell(audit, name, title) {
  const texts = {
    accuracy: () => (audit.accuracy === null && audit.certified ? "proven" : percent(audit.accuracy)),
    advantage: () => percent(audit.advantage),
    known: () => percent(audit.known),
    exact: () => (audit.exact === null ? "–" : audit.exact ? "yes" : "no"),
    restored: () => (audit.restored === null ? (audit.present ? `${audit.present} classes` : "–")
      : `${audit.restored} in ${audit.present} ${audit.present === 1 ? "class" : "classes"}`),
    epsilon: () => short(audit.epsilon),
    flags: () => (audit.flags.length ? audit.flags.map((flag) => flag.split(":")[0]).join(", ") : "–"),
  };
  const classes = `${name}${FIGURES.has(name) ? " figure" : ""}${name === "verdict" ? ` ${audit.verdict}` : ""}`;
  return element("td", { class: classes, "data-of": title }, texts[name] ? texts[name]() : plain(audit[name]));
}

function details(audit) {
  const inside = element("td", { colspan: COLUMNS.length }, element("p", {}, `${audit.reason}.`));
  if (audit.after) inside.append(element("p", {}, `${audit.after}.`));
  for (const flag of audit.flags) inside.append(element("p", {}, `Flag ${flag}.`));
  if (audit.classes.length) {
    const known = audit.classes.some((entry) => entry[2] !== null);
    const number = (value) => (value === null ? "present" : Number.isInteger(value) ? `${value}` : percent(value));
    inside.append(element("p", {}, `Class: restored${known ? " / true" : ""}`),
      element("div", { class: "chips" }, ...audit.classes.map(([label, found, real]) => element("span",
        real !== null && found !== real ? { class: "wrong" } : {},
        `${label}: ${number(found)}${real === null ? "" : ` / ${real}`}`))));
  }
  const budget = audit.epsilon === null ? [] : [`ε = ${short(audit.epsilon)}${audit.delta === null ? "" : `, δ = ${audit.delta}`}`];
  inside.append(element("p", { class: "soft" }, ["policy: " + audit.notes.join("; "), ...budget, ...(audit.run ? [`run ${audit.run}`] : []), audit.time].join("; ")));
  return element("tr", { class: "more" }, inside);
}

function sorted(among) {
  const key = (audit) => (state.sort === "verdict" ? GRAVITY.indexOf(audit.verdict)
    : state.sort === "flags" ? audit.flags.length : audit[state.sort]);
  const empty = (value) => value === null || value === "";
  return among.slice().sort((a, b) => {
    const [one, two] = [key(a), key(b)];
    if (empty(one) !== empty(two)) return empty(one) ? 1 : -1;
    return (state.down ? -1 : 1) * compare(one, two) || a.round - b.round || compare(a.client, b.client) || a.number - b.number;
  });
}

function drawTable(among) {
  const all = sorted(among);
  const pages = Math.max(1, Math.ceil(all.length / PAGE));
  state.page = Math.min(Math.max(0, state.page), pages - 1);
  const heads = COLUMNS.map(([name, title]) => {
    const button = element("button", { type: "button" }, title + (state.sort === name ? (state.down ? " ↓" : " ↑") : ""));
    button.addEventListener("click", () => {
      Object.assign(state, { down: state.sort === name ? !state.down : false, sort: name, page: 0 });
      drawTable(chosen());
    });
    const sorting = state.sort === name ? { "aria-sort": state.down ? "descending" : "ascending" } : {};
    return element("th", { scope: "col", ...(FIGURES.has(name) ? { class: "figure" } : {}), ...sorting }, button);
  });
  byId("audits").tHead.replaceChildren(element("tr", {}, ...heads));
  byId("audits").tBodies[0].replaceChildren(...all.slice(state.page * PAGE, (state.page + 1) * PAGE).flatMap((audit) => {
    const open = state.open === audit.number;
    const cellsOf = COLUMNS.map(([name, title]) => cell(audit, name, title));
    const button = element("button", { type: "button", "aria-expanded": open }, plain(audit.client));
    button.addEventListener("click", () => {
      state.open = open ? null : audit.number;
      drawTable(chosen());
    });
    cellsOf[1].replaceChildren(button);
    const row = element("tr", {}, ...cellsOf);
    return open ? [row, details(audit)] : [row];
  }));
  byId("page").textContent = `page ${state.page + 1} of ${pages}`;
  byId("back").disabled = state.page === 0;
  byId("on").disabled = state.page === pages - 1;
}

function draw() {
  const among = chosen();
  byId("amount").textContent = `${among.length} of ${audits.length} audits`;
  drawLines(among);
  drawMap(among);
  drawTable(among);
}

fillFilters();
draw();
filters.addEventListener("change", () => { state.page = 0; draw(); });
filters.addEventListener("reset", () => setTimeout(() => { state.page = 0; draw(); }));
byId("back").addEventListener("click", () => { state.page -= 1; drawTable(chosen()); });
byId("on").addEventListener("click", () => { state.page += 1; drawTable(chosen()); });
byId("map").addEventListener("mousemove", (event) => {
  const audit = cellAt(event);
  byId("tip").textContent = audit
    ? `client ${audit.client}, round ${audit.round}: ${audit.verdict}, ${percent(audit.accuracy)}` : "\u00a0";
});
byId("map").addEventListener("click", (event) => {
  const audit = cellAt(event);
  if (!audit) return;
  state.open = audit.number;
  state.page = Math.floor(sorted(chosen()).indexOf(audit) / PAGE);
  drawTable(chosen());
  document.querySelector("#audits .more").scrollIntoView({ block: "center" });
});
window.addEventListener("resize", () => drawMap(chosen()));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMap(chosen()));
