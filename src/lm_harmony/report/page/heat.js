// The heat maps of the agreement between benchmarks, direct and trained.

const tauViews = () => ["direct", "trained"].filter((view) => board.has(view) && board.views[view].tau);

// Two heat maps stand side by side where the screen is wide enough. Their rows are the same, so only the first has names there.
const areBeside = () => tauViews().length === 2 && (paper !== null || !isNarrow());

// The room for names and for cells, in pixels: from the width of the card and the longest name of all benchmarks.
const heatSize = () => {
  const width = paper ?? byId("chart-tau").querySelector(".pair").clientWidth;
  const own = areBeside() ? width / 2 : width;
  const font = own < 460 ? 10 : 11;
  const label = Math.min(0.4 * own, 14 + 0.66 * font * Math.max(...board.benchmarks.map(({ title }) => title.length)));
  const area = areBeside() ? (width - GAP - label - START - 2 * END) / 2 : width - label - END;
  return { font, label, area };
};
// Pixels between the two heat maps, before the cells of a heat map without names, after the cells, and above them.
const [GAP, START, END, TITLE] = [12, 4, 8, 30];

// Cells are squares, or higher where the names of all benchmarks need it.
const heatHeight = () => {
  const { label, area } = heatSize();
  return Math.round(Math.max(240, Math.min(520, Math.max(area, 12 * board.columns.length) + label + TITLE)));
};

const placeHeatMaps = () => {
  const pair = byId("chart-tau").querySelector(".pair");
  const views = tauViews();
  [...pair.children].forEach((node, at) => { node.hidden = !views.includes(["direct", "trained"][at]); });
  pair.classList.toggle("alone", views.length < 2);
  const { label, area } = heatSize();
  pair.style.gridTemplateColumns = areBeside() ? `${label + area + END}px minmax(0, 1fr)` : "";
};

const tauOf = (view, places) => {
  const { tau } = board.views[view];
  const kept = places.filter((j) => tau[j].some((value) => value !== null));
  const z = kept.map((i) => kept.map((j) => tau[i][j]));
  const others = z.flatMap((row, i) => row.filter((value, j) => i !== j && value !== null));
  return { z, titles: kept.map((j) => plotText(board.benchmarks[j].title)), mean: others.length ? others.reduce((sum, value) => sum + value, 0) / others.length : null };
};

const shownPlaces = (page) => columnOrder().filter((j) => page.derived.columns.includes(board.benchmarks[j].task));

const describeTau = (page) => {
  const places = shownPlaces(page);
  if (places.length < 2) return "Select at least two benchmarks.";
  const means = tauViews().map((view) => [view, tauOf(view, places).mean]).filter(([, mean]) => mean !== null);
  const of = means.length ? ` Mean: ${means.map(([view, mean]) => `${view} ${mean.toFixed(2)}`).join(", ")}.` : "";
  return `Kendall’s τ between every two benchmarks; 1 is the same order.${of}`;
};

const drawTau = (page, card) => {
  const nodes = card.querySelectorAll(".plot");
  const places = shownPlaces(page);
  // One benchmark has no heat map. Its room stays empty.
  nodes.forEach((node) => { node.style.visibility = places.length > 1 ? "" : "hidden"; });
  if (places.length < 2) return Promise.resolve();
  return Promise.all(tauViews().map((view, at) =>
    drawHeat(nodes[view === "direct" ? 0 : 1], view, { ...tauOf(view, places), names: at === 0 || !areBeside() })));
};

// Numbers are written into the cells where a cell has room for them.
const drawHeat = (node, view, { z, titles, mean, names }) => {
  const { surface, agree, disagree, muted, ink } = colours();
  const { font, label, area } = heatSize();
  const [cell, line] = [area / titles.length, (heatHeight() - TITLE - label) / titles.length];
  const text = z.map((row, i) => row.map((value, j) => (value === null || i === j || cell < 24 || line < 13 ? "" : value.toFixed(2).replace(/^(-?)0/, "$1").replace("-", "−"))));
  const left = names ? label : START;
  return plot(node, [{ type: "heatmap", z, x: titles, y: titles, zmin: -1, zmax: 1, xgap: 1, ygap: 1, colorscale: [[0, disagree], [0.5, surface], [1, agree]],
    text, texttemplate: "%{text}", textfont: { size: cell < 30 ? 10 : 12, color: ink }, hovertemplate: "%{y} and %{x}: %{z:.2f}<extra></extra>", showscale: false }],
  { ...(paper === null ? {} : { width: left + area + END }), margin: { l: left, r: END, t: TITLE, b: label }, showlegend: false,
    title: { text: mean === null ? view : `${view}: mean ${mean.toFixed(2)}`, font: { size: 13, color: ink }, x: 0.5, xanchor: "center", y: 0.98, yanchor: "top" },
    xaxis: { tickangle: -90, showgrid: false, tickfont: { size: Math.min(font, Math.max(9, Math.floor(cell))), color: muted }, fixedrange: true, automargin: false, dtick: 1 },
    yaxis: { autorange: "reversed", showgrid: false, tickfont: { size: font, color: muted }, fixedrange: true, automargin: false, dtick: 1, showticklabels: names, ticks: names ? "outside" : "" } });
};
