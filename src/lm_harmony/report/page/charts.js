// The four charts. Plotly is large, so it is unpacked after the table was painted. Charts without data are hidden.

// Twelve hues of equal lightness for light and dark themes. More families reuse them in order.
const HUES = ["#4e79a7", "#e08a3c", "#c9565b", "#4fa3a0", "#5f9e53", "#c9a227", "#9b72a8", "#d87f96", "#8d6e58", "#6f8fd0", "#7f9b3a", "#808489"];
const familyColour = (family) => HUES[board.families.indexOf(family) % HUES.length];

// Plotly interprets some HTML, and TeX between dollar signs. Names must be shown literally.
const plotText = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
// The last part of a name, or all of it where another model has the same last part. A very long name loses its middle.
const shortName = (name) => {
  const own = board.sameEnds.has(name) ? name : ownPart(name);
  return plotText(own.length > 44 ? `${own.slice(0, 20)}…${own.slice(-23)}` : own);
};

const makeCharts = (page) => {
  const shows = (view) => board.has(view) && board.views[view].components;
  const charts = [
    { card: byId("chart-bump"), draw: drawBump, has: board.has("gain") },
    { card: byId("chart-tau"), draw: drawTau, has: ["direct", "trained"].some((view) => board.has(view) && board.views[view].tau) },
    { card: byId("chart-scree"), draw: drawScree, has: ["direct", "trained"].some(shows) },
    { card: byId("chart-size"), draw: drawSize, has: board.models.some(({ params }) => params !== null) && ["direct", "trained"].some(shows) },
  ];
  charts.forEach(({ card, has }) => { card.hidden = !has; });
  // Without both kinds of scores there is no comparison to begin with, and the table comes first.
  if (!board.has("gain")) byId("charts").prepend(byId("chart-tau"), byId("findings"));
  byId("story").hidden = !board.has("gain");
  byId("charts").hidden = ![...byId("charts").children].some((card) => !card.hidden);
  if (board.has("gain")) fillBumpChoice(page);
  const present = charts.filter(({ has }) => has);
  let ready = null;
  const refresh = async ({ card, draw }) => {
    try {
      ready ??= afterPaint().then(() => load("plotly"));
      await ready;
      await draw(page, card);
      nameFigures(card);
      card.dataset.drawn = "true";
    } catch (error) {
      // If the library cannot be unpacked, the table still works.
      setNote(card, `The chart cannot be drawn: ${error.message}`);
    }
  };
  let turn = 0;
  // All charts are drawn, one after another, so that they are there before the reader scrolls to them.
  const refreshAll = async () => {
    turn += 1;
    const own = turn;
    for (const chart of present) if (own === turn) await refresh(chart);
  };
  listenForPrinting(page, present);
  addEventListener("resize", () => { if (narrowWhenDrawn !== isNarrow()) refreshAll(); });
  // While the reader types a search, the table is redrawn at once and the charts after a pause.
  let pause;
  return () => {
    byId("bump-by").value = page.state.bump;
    present.forEach(({ card }) => { delete card.dataset.drawn; });
    clearTimeout(pause);
    pause = setTimeout(refreshAll, 120);
  };
};

// A screen reader gets the title and the sentence of a chart as the name of each figure.
const nameFigures = (card) => card.querySelectorAll(".plot").forEach((node) => {
  node.setAttribute("role", "figure");
  node.setAttribute("aria-label", `${card.querySelector("h2").textContent}. ${card.querySelector(".note").textContent}`);
});

let paper = null;
// On paper the charts have light colours and the width of a page.
const listenForPrinting = (page, charts) => {
  const draw = (width) => {
    paper = width;
    document.documentElement.style.colorScheme = width ? "light" : page.state.theme === "auto" ? "" : page.state.theme;
    if (globalThis.Plotly) charts.forEach((chart) => chart.draw(page, chart.card));
  };
  addEventListener("beforeprint", () => draw(620));
  addEventListener("afterprint", () => draw(null));
  // On phones a label of a chart closes when the reader touches something else.
  document.addEventListener("pointerdown", (event) => {
    if (globalThis.Plotly) for (const { card } of charts) for (const node of card.querySelectorAll(".plot")) if (!node.contains(event.target) && node.layout) Plotly.Fx.unhover(node);
  });
};

// Waits for two frames and an idle callback, so that the table is painted before the library is evaluated.
const afterPaint = () => new Promise((done) => {
  const idle = globalThis.requestIdleCallback ?? ((then) => setTimeout(then, 50));
  requestAnimationFrame(() => requestAnimationFrame(() => idle(done)));
});

const setNote = (card, text) => { card.querySelector(".note").textContent = text; };

// The colours of the current theme, as the browser computes them.
const colours = () => {
  const probe = document.body.appendChild(element("i", { hidden: true }));
  const of = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const found = Object.fromEntries(["ink", "muted", "line", "surface", "accent", "warm", "agree", "disagree"].map((name) => [name, of(name)]));
  probe.remove();
  return found;
};

let narrowWhenDrawn = null;
const plot = (node, traces, layout, height) => {
  narrowWhenDrawn = isNarrow();
  node.style.minHeight = `${height}px`;
  const { ink, muted, line, surface } = colours();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: muted, size: 11 }, title: { font: { color: muted, size: 12 } }, automargin: true };
  const full = { font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 16, t: 34, b: 46 }, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink }, hoverlabel: { bgcolor: surface, bordercolor: line, font: { color: ink } }, dragmode: false, height,
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: muted } }, showlegend: true,
    ...(paper ? { width: node.closest(".pair") && board.has("gain") ? paper / 2 - 10 : paper, autosize: false } : { autosize: true }), ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  return Plotly.react(node, traces, full, { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg", filename: "board" } });
};

const shownIndices = (page) => shownModels(page).map(({ index }) => index);
const isNarrow = () => document.documentElement.clientWidth < 700;

const tauOf = (view, places) => {
  const { tau } = board.views[view];
  const kept = places.filter((j) => tau[j].some((value) => value !== null));
  const z = kept.map((i) => kept.map((j) => tau[i][j]));
  const others = z.flatMap((row, i) => row.filter((value, j) => i !== j && value !== null));
  return { z, titles: kept.map((j) => plotText(board.benchmarks[j].title)), mean: others.length ? others.reduce((sum, value) => sum + value, 0) / others.length : null };
};

const drawTau = (page, card) => {
  const nodes = card.querySelectorAll(".plot");
  const places = columnOrder().filter((j) => page.derived.columns.includes(board.benchmarks[j].task));
  const drawings = [];
  const means = [];
  for (const [at, view] of ["direct", "trained"].entries()) {
    nodes[at].hidden = !(board.has(view) && board.views[view].tau && places.length > 1);
  }
  card.querySelector(".pair").classList.toggle("alone", [...nodes].some((node) => node.hidden));
  for (const [at, view] of ["direct", "trained"].entries()) {
    if (nodes[at].hidden) continue;
    const found = tauOf(view, places);
    if (found.mean !== null) means.push(`${view} ${found.mean.toFixed(2)}`);
    drawings.push(drawHeat(nodes[at], view, found));
  }
  setNote(card, places.length > 1 ? `Kendall’s τ between every two benchmarks; 1 is the same order.${means.length ? ` Mean: ${means.join(", ")}.` : ""}` : "Select at least two benchmarks.");
  return Promise.all(drawings);
};

// Numbers are written into the cells where a cell has room for them.
const drawHeat = (node, view, { z, titles, mean }) => {
  const { surface, agree, disagree, muted, ink } = colours();
  const width = paper ? (board.has("gain") ? paper / 2 - 10 : paper) : node.clientWidth;
  const size = width < 460 ? 10 : 11;
  const label = Math.min(0.4 * width, 14 + 0.66 * size * Math.max(...titles.map((title) => title.length)));
  const height = Math.round(Math.max(240, Math.min(520, width - label + label * 0.9 + 40)));
  const [cell, line] = [(width - label - 8) / titles.length, (height - 34 - label) / titles.length];
  const text = z.map((row, i) => row.map((value, j) => (value === null || i === j || cell < 24 || line < 13 ? "" : value.toFixed(2).replace(/^(-?)0/, "$1").replace("-", "−"))));
  return plot(node, [{ type: "heatmap", z, x: titles, y: titles, zmin: -1, zmax: 1, xgap: 1, ygap: 1, colorscale: [[0, disagree], [0.5, surface], [1, agree]],
    text, texttemplate: "%{text}", textfont: { size: cell < 30 ? 10 : 12, color: ink }, hovertemplate: "%{y} and %{x}: %{z:.2f}<extra></extra>", showscale: false }],
  { title: { text: mean === null ? view : `${view}: mean ${mean.toFixed(2)}`, font: { size: 13, color: ink }, x: 0.5, xanchor: "center", y: 0.98, yanchor: "top" }, margin: { l: label, r: 8, t: 30, b: label }, showlegend: false,
    xaxis: { tickangle: -90, showgrid: false, tickfont: { size, color: muted }, fixedrange: true, automargin: false, dtick: 1 },
    yaxis: { autorange: "reversed", showgrid: false, tickfont: { size, color: muted }, fixedrange: true, automargin: false, dtick: 1 } }, height);
};

const drawScree = (page, card) => {
  const { accent, warm } = colours();
  const sentences = [];
  const traces = [];
  for (const [view, colour] of [["direct", warm], ["trained", accent]]) {
    if (!board.has(view)) continue;
    const { explained, trouble } = derive({ ...page.state, view });
    if (!explained) { sentences.push(`${view}: ${trouble ?? "no components"}`); continue; }
    sentences.push(`${view}: ${percent(explained[0])}`);
    const first = explained.slice(0, 10);
    traces.push({ type: "scatter", mode: "lines+markers", name: view, x: first.map((_, k) => k + 1), y: first.map((share) => 100 * share),
      line: { color: colour, width: 2 }, marker: { size: 7 }, hovertemplate: `component %{x}: %{y:.1f}%<extra>${view}</extra>` });
  }
  setNote(card, `Share of the variance that each principal component explains. First component, ${sentences.join(", ")}.`);
  return plot(card.querySelector(".plot"), traces, { xaxis: { title: { text: "principal component" }, dtick: 1, fixedrange: true }, yaxis: { rangemode: "tozero", ticksuffix: "%", fixedrange: true } }, 360);
};

// From 10 thousand to 3 trillion parameters, in billions.
const SIZE_TICKS = Array.from({ length: 9 }, (_, k) => 10 ** (k - 5)).flatMap((decade) => [decade, 3 * decade]);

const drawSize = (page, card) => {
  const { pc1, low, high, componentView } = page.derived;
  const shown = shownIndices(page).filter((i) => pc1[i] !== null);
  const sized = shown.filter((i) => board.models[i].params !== null);
  const without = shown.length - sized.length;
  setNote(card, `PC1 of the ${componentView} scores, ${counted(sized.length, "model")}${without ? `; ${without} of unknown size left out` : ""}. Filled: base models; open: other models.`);
  // The base models of a family come first, so that the legend shows the filled symbol where there is one.
  sized.sort((a, b) => (board.models[a].kind !== "base") - (board.models[b].kind !== "base"));
  const families = board.families.filter((family) => sized.some((i) => board.models[i].family === family));
  const traces = families.map((family) => {
    const own = sized.filter((i) => board.models[i].family === family);
    const error = low && own.every((i) => low[i] !== null)
      ? { type: "data", symmetric: false, array: own.map((i) => high[i] - pc1[i]), arrayminus: own.map((i) => pc1[i] - low[i]), thickness: 1, width: 0, color: familyColour(family) } : undefined;
    return { type: "scatter", mode: "markers", name: plotText(family), x: own.map((i) => board.models[i].params), y: own.map((i) => pc1[i]), error_y: error,
      marker: { color: familyColour(family), size: own.map((i) => (page.state.pins.includes(board.models[i].name) ? 13 : 8)), symbol: own.map((i) => (board.models[i].kind === "base" ? "circle" : "circle-open")), line: { width: 1.5, color: familyColour(family) } },
      hoverinfo: "text", hovertext: own.map((i) => `${plotText(board.models[i].name)}<br>${billions(board.models[i].params)}, PC1 ${fixed(pc1[i], 0)}`) };
  });
  return plot(card.querySelector(".plot"), traces, { xaxis: { type: "log", title: { text: "parameters" }, tickvals: SIZE_TICKS, ticktext: SIZE_TICKS.map(billions), fixedrange: true },
    yaxis: { title: { text: "PC1" }, fixedrange: true } }, 360);
};
