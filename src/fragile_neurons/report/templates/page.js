"use strict";
/* What a reader chooses, and everything that follows from it: layer, epsilon, one neuron, those a brush left. */

const content = JSON.parse(document.getElementById("content").textContent);
const find = (id) => document.getElementById(id);
const state = { layer: content.layers[0], epsilon: content.epsilons.at(-1), neuron: "", kept: null };
const views = new Map(); // name of a figure -> its live Vega view

const tables = Object.fromEntries(
  Object.entries(content.datasets).map(([name, { paged, columns, title }]) => {
    const read = Object.entries(columns).map(([column, { texts, places, values }]) =>
      [column, texts ? places.map((place) => texts[place]) : values]);
    const count = read.length ? read[0][1].length : 0;
    const rows = Array.from({ length: count }, (_, row) =>
      Object.fromEntries(read.map(([column, all]) => [column, all[row]])));
    return [name, { title, paged, rows, columns: read.map(([column]) => column) }];
  }));

/** The rows of a table for the layer and epsilon chosen; a row without one belongs to all. */
function shown(name) {
  const { paged, rows } = tables[name];
  return rows.filter((row) => paged.every((key) => row[key] == null || row[key] === state[key]));
}

/** Whether a brush left this row: those of no neuron it leaves alone. */
function isKept({ neuron }) {
  return neuron === undefined || state.kept === null || state.kept.includes(neuron);
}

/* ---- charts ---- */

/** A copy of a chart as wide as there is room; strips along an edge keep their width. */
function fitted(spec, room) {
  const copy = { ...spec };
  const beside = (one) => (one.hconcat || []).filter(({ width }) => width < 40).length;
  const left = room - 40 * Math.max(0, ...(copy.vconcat || []).map(beside));
  if (copy.vconcat) copy.vconcat = copy.vconcat.map((one) => fitted(one, left));
  if (copy.hconcat) copy.hconcat = copy.hconcat.map((one) => fitted(one, room));
  if (copy.width >= 40) copy.width = Math.max(150, room);
  return copy;
}

async function draw(place) {
  const name = place.dataset.figure;
  const { spec, dataset } = content.figures[name];
  const where = tables[dataset].paged.map((key) => key === "epsilon" && state[key] ? `epsilon ${state[key]}` : state[key]);
  place.parentElement.querySelector(".where").textContent = where.filter(Boolean).length ? ` (${where.filter(Boolean).join(", ")})` : "";
  const brushed = spec.params.some((one) => one.name === "brush");
  const rows = brushed ? shown(dataset) : shown(dataset).filter(isKept);
  if (views.has(name)) views.get(name).finalize();
  views.delete(name);
  if (!rows.length) { place.textContent = "Nothing was measured here."; return; }
  const room = Math.min(place.clientWidth, 900) - (name.includes("class") || name === "confusion" ? 150 : 80);
  const drawn = { ...fitted(spec, room), datasets: { ...spec.datasets, [dataset]: rows } };
  drawn.params = spec.params.map((one) =>
    one.name in { chosen: 1, kept: 1 } ? { ...one, value: one.name === "chosen" ? state.neuron : state.kept } : one);
  const { view } = await vegaEmbed(place, drawn, { renderer: "svg", actions: false });
  views.set(name, view);
  view.addEventListener("click", (_, item) => {
    if (item && item.datum && item.datum.neuron) choose(item.datum.neuron);
  });
  if (brushed) view.addSignalListener("brush", (_, range) => keep(rows, range));
}

let drawing = 0;
/** Every chart anew, but for one of this name. */
async function drawAll(but) {
  const turn = ++drawing;
  delete document.body.dataset.ready;
  for (const place of document.querySelectorAll(".plot")) {
    if (place.dataset.figure !== but) await draw(place);
    await new Promise((done) => setTimeout(done));
    if (turn !== drawing) return;
  }
  document.body.dataset.ready = "yes";
}

let resting;
/** The neurons inside a brush's ranges, in every other chart once it rests; all of them where it is empty. */
function keep(rows, range) {
  const sides = Object.entries(range || {});
  state.kept = sides.length
    ? rows.filter((row) => sides.every(([field, [low, high]]) => row[field] != null && row[field] >= low && row[field] <= high))
      .map((row) => row.neuron)
    : null;
  views.get("relation").signal("kept", state.kept).runAsync();
  dress();
  clearTimeout(resting);
  resting = setTimeout(() => drawAll("relation"), 300);
}

/* ---- neurons ---- */

const SORTS = {
  index: (row) => row.channel, fragility: (row) => row.fragility_rank, targeting: (row) => row.share_rank,
  excess: (row) => -(row.excess ?? -Infinity), gain: (row) => -row.gain,
};

const FRAMES = { clean: "clean_verdict", attacked: "adv_verdict" };

function neurons() {
  return "neurons" in tables ? shown("neurons") : "gains" in tables ? shown("gains") : [];
}

function piece(kind, sheet, column, columns, row, rows) {
  const part = document.createElement(kind);
  part.style.backgroundImage = `url(${sheet})`;
  part.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  part.style.backgroundPosition =
    `${columns > 1 ? 100 * column / (columns - 1) : 0}% ${rows > 1 ? 100 * row / (rows - 1) : 0}%`;
  part.className = "cut";
  return part;
}

/** Where each neuron of the layer stands in its sheets: in the order of channels. */
function order() {
  return neurons().map((row) => row.channel).sort((one, other) => one - other);
}

function picture(channel, places) {
  const sheets = content.sheets[state.layer] || {};
  const place = places.indexOf(channel);
  if (sheets.kernels) {
    return piece("span", sheets.kernels[find("scale").value], place, sheets.channels, 0, 1);
  }
  if (sheets.patches) {
    const box = document.createElement("span");
    box.className = "cuts";
    for (let one = 0; one < sheets.patches.each; one++) {
      box.append(piece("span", sheets.patches.sheet, one, sheets.patches.each, place, sheets.channels));
    }
    return box;
  }
  const box = document.createElement("span");
  box.className = "empty";
  box.textContent = channel;
  return box;
}

/** What a card's frame says of its neuron: a verdict, or what its gain does. */
function frame(row) {
  if (row.gain !== undefined) return row.gain > 1 ? "amplified" : row.gain < 1 ? "compressed" : "unchanged";
  return row[FRAMES[find("frame").value]] || "undecided";
}

function showCards() {
  const box = find("cards");
  if (!box) return;
  const places = order();
  const by = SORTS[find("sort").value] || SORTS.index;
  const cards = [...neurons()].sort((one, other) => by(one) - by(other) || one.channel - other.channel).map((row) => {
    const card = document.createElement("button");
    card.type = "button";
    card.className = "card";
    card.dataset.neuron = row.neuron;
    card.style.setProperty("--frame", `var(--${frame(row)})`);
    const label = document.createElement("span");
    label.textContent = `#${row.channel} ${row.gain === undefined ? frame(row) : `gain ${row.gain.toPrecision(3)}`}`;
    card.append(picture(row.channel, places), label);
    card.addEventListener("click", () => choose(state.neuron === row.neuron ? "" : row.neuron));
    return card;
  });
  box.replaceChildren(...cards);
  const { kernels } = content.sheets[state.layer] || {};
  find("scale").parentElement.hidden = !kernels;
  const present = new Set(neurons().map(frame));
  document.querySelector(".frames").replaceChildren(...[...present].map((verdict) => {
    const one = document.createElement("span");
    const mark = document.createElement("i");
    mark.style.background = `var(--${verdict})`;
    one.append(mark, verdict);
    return one;
  }));
}

/** The chosen neuron, those kept, and the page of every table: what is marked, and what is hidden. */
function dress() {
  for (const card of document.querySelectorAll(".card")) {
    const { neuron } = card.dataset;
    card.setAttribute("aria-pressed", String(neuron === state.neuron));
    card.classList.toggle("left-out", state.kept !== null && !state.kept.includes(neuron));
  }
  for (const row of document.querySelectorAll("[data-layer], [data-epsilon]")) {
    const { layer, epsilon, neuron } = row.dataset;
    row.hidden = (layer !== undefined && layer !== state.layer)
      || (epsilon !== undefined && epsilon !== state.epsilon)
      || (neuron !== undefined && state.kept !== null && !state.kept.includes(neuron));
    row.classList.toggle("chosen", neuron !== undefined && neuron === state.neuron);
  }
  find("chosen").textContent = [
    state.neuron, state.kept === null ? "" : `${state.kept.length} kept by the brush`].filter(Boolean).join(", ");
  find("clear").hidden = !state.neuron && state.kept === null;
  showNumbers();
  showMaps();
}

const NUMBERS = new Set([
  "clean drop", "clean low", "clean high", "clean verdict", "adv drop", "adv low", "adv high", "adv verdict", "margin drop",
  "share", "swap share", "noise share", "excess", "rescue", "inject", "weight norm", "gain", "shift"]);

/** The chosen neuron's row of the first table that has one, as it stands there. */
function showNumbers() {
  const box = find("neuron");
  if (!box) return;
  const row = [...document.querySelectorAll(".twin tr.chosen")].find((one) => !one.hidden);
  box.hidden = !row;
  if (!row) return;
  const heads = [...row.closest("table").querySelectorAll("th")];
  const list = document.createElement("dl");
  heads.forEach((head, place) => {
    if (!NUMBERS.has(head.textContent)) return;
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = head.textContent;
    value.textContent = row.cells[place].textContent;
    pair.append(term, value);
    list.append(pair);
  });
  const title = document.createElement("strong");
  title.textContent = state.neuron;
  box.replaceChildren(title, list);
}

function showMaps() {
  const sheets = content.sheets[state.layer] || {};
  const row = neurons().find((one) => one.neuron === state.neuron);
  for (const box of document.querySelectorAll(".maps")) {
    box.hidden = !row || !sheets.maps || Number(box.closest(".pair").dataset.image) >= sheets.maps.images;
    if (box.hidden) continue;
    const image = Number(box.closest(".pair").dataset.image);
    const place = order().indexOf(row.channel);
    const side = (which) => piece("i", sheets.maps.sheet, 2 * image + which, 2 * sheets.maps.images, place, sheets.channels);
    const name = document.createElement("span");
    name.textContent = `map of ${state.neuron}, clean and attacked`;
    box.replaceChildren(side(0), name, side(1));
  }
}

/** The chosen neuron in every chart as it stands, and on the page. */
function mark() {
  for (const view of views.values()) view.signal("chosen", state.neuron).runAsync();
  dress();
}

function choose(neuron) {
  const row = neuron && Object.values(tables).flatMap(({ rows }) => rows).find((one) => one.neuron === neuron);
  if (neuron && !row) neuron = "";
  const turned = row && row.layer && row.layer !== state.layer;
  state.neuron = neuron;
  if (turned) { state.layer = row.layer; find("layer").value = row.layer; turn(); } else { mark(); }
  const address = neuron ? "#" + new URLSearchParams({ neuron }) : location.pathname + location.search;
  history.replaceState(null, "", address);
}

/* ---- the page ---- */

/** After another layer or epsilon: everything anew. */
function turn() {
  state.kept = null;
  showCards();
  dress();
  drawAll();
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => new Option(value, value, false, value === chosen)));
  select.parentElement.hidden = values.length < 2;
}

function download(button) {
  const name = button.dataset.dataset || "table";
  const table = button.closest(".scroll, .twin").querySelector("table");
  const read = (row) => [...row.cells].map((one) => one.textContent);
  const { columns, rows } = tables[name] || { columns: [], rows: [] };
  const quoted = (value) => {
    const text = value == null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = name in tables
    ? [columns, ...rows.map((row) => columns.map((column) => row[column]))]
    : [...table.rows].map(read);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"]));
  link.download = `${name.replaceAll(" ", "-")}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function follow() {
  const neuron = new URLSearchParams(location.hash.slice(1)).get("neuron");
  if (!neuron || neuron === state.neuron) return;
  choose(neuron);
  if (state.neuron) document.querySelector(".card[aria-pressed='true']").scrollIntoView({ block: "center" });
  else find("chosen").textContent = `there is no neuron ${neuron} in this run`;
}

function start() {
  for (const button of document.querySelectorAll(".download")) {
    button.addEventListener("click", () => download(button));
  }
  if (find("layer")) {
    document.querySelector(".controls").classList.add("live");
    options(find("layer"), content.layers.filter((one) => one !== null), state.layer);
    options(find("epsilon"), content.epsilons.filter((one) => one !== null), state.epsilon);
    for (const key of ["layer", "epsilon"]) {
      find(key).addEventListener("change", (event) => {
        state[key] = event.target.value;
        if (key === "layer") { state.neuron = ""; history.replaceState(null, "", location.pathname + location.search); }
        turn();
      });
    }
    const clear = () => { choose(""); if (state.kept !== null) turn(); };
    find("clear").addEventListener("click", clear);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
    window.addEventListener("hashchange", follow);
  }
  if (find("cards")) {
    const all = (tables.neurons || tables.gains || { rows: [] }).rows;
    options(find("sort"), Object.keys(SORTS).filter((name) => all.some((row) => Number.isFinite(SORTS[name](row)))), "index");
    const verdicts = Object.keys(FRAMES).filter((name) => all.some((row) => row[FRAMES[name]]));
    options(find("frame"), verdicts, verdicts.at(-1));
    find("frame").addEventListener("change", () => { showCards(); dress(); });
    find("sort").addEventListener("change", () => { showCards(); dress(); });
    find("scale").addEventListener("change", () => { showCards(); dress(); });
    find("cards").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const cards = [...document.querySelectorAll(".card")];
      const next = cards[cards.indexOf(document.activeElement) + (step || 0)];
      if (step && next) { event.preventDefault(); next.focus(); }
    });
    showCards();
  }
  if (find("layer")) { dress(); follow(); }
  if (!drawing) drawAll();
  let wide = document.body.clientWidth, waiting;
  window.addEventListener("resize", () => {
    if (document.body.clientWidth === wide) return;
    wide = document.body.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.kept = null; dress(); drawAll(); }, 200);
  });
}

start();
