// The four charts. Plotly is large, so it is unpacked only when a chart becomes visible.

// Twelve hues of equal lightness for light and dark themes. More families reuse them in order.
const HUES = ["#4e79a7", "#e08a3c", "#c9565b", "#4fa3a0", "#5f9e53", "#c9a227", "#9b72a8", "#d87f96", "#8d6e58", "#6f8fd0", "#7f9b3a", "#808489"];
const familyColour = (family) => HUES[board.families.indexOf(family) % HUES.length];

// Plotly interprets some HTML, and TeX between dollar signs. Names must be shown literally.
const plotText = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
const shortName = (name) => {
  const own = name.slice(name.lastIndexOf("/") + 1) || name;
  return plotText(own.length > 32 ? `${own.slice(0, 31)}…` : own);
};

const makeCharts = (page) => {
  const charts = [
    { card: byId("chart-bump"), draw: drawBump }, { card: byId("chart-tau"), draw: drawTau },
    { card: byId("chart-scree"), draw: drawScree }, { card: byId("chart-size"), draw: drawSize },
  ];
  fillBumpChoice(page);
  let ready = null;
  const refresh = async (chart) => {
    if (!chart.near || !chart.stale) return;
    chart.stale = false;
    try {
      ready ??= afterPaint().then(() => load("plotly"));
      await ready;
      await chart.draw(page, chart.card);
      if (!chart.stale) chart.card.dataset.drawn = "true";
    } catch (error) {
      // If the library cannot be unpacked, the table still works.
      setNote(chart.card, `The chart cannot be drawn: ${error.message}`);
    }
  };
  const watcher = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    const chart = charts.find(({ card }) => card === target);
    chart.near = isIntersecting;
    refresh(chart);
  }));
  charts.forEach(({ card }) => watcher.observe(card));
  // While the reader types a search, the table is redrawn at once and the charts after a pause.
  let pause;
  return () => {
    byId("bump-by").value = page.state.bump;
    charts.forEach((chart) => { chart.stale = true; delete chart.card.dataset.drawn; });
    clearTimeout(pause);
    pause = setTimeout(() => charts.forEach(refresh), 120);
  };
};

// Waits for two frames and an idle callback, so that the table is painted before the library is evaluated.
const afterPaint = () => new Promise((done) => {
  const idle = globalThis.requestIdleCallback ?? ((then) => setTimeout(then, 50));
  requestAnimationFrame(() => requestAnimationFrame(() => idle(done)));
});

const fillBumpChoice = (page) => {
  const select = byId("bump-by");
  select.append(element("option", { value: "pc1", text: "PC1" }), ...board.benchmarks.map(({ task, title }) => element("option", { value: task, text: title })));
  select.addEventListener("change", () => page.set({ bump: select.value }));
};

const setNote = (card, text) => { card.querySelector(".note").textContent = text; };

// The colours of the current theme, as the browser computes them.
const colours = () => {
  const probe = document.body.appendChild(element("i", { hidden: true }));
  const of = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const found = Object.fromEntries(["ink", "muted", "line", "surface", "accent", "warm"].map((name) => [name, of(name)]));
  probe.remove();
  return found;
};

const plot = (node, traces, layout, height) => {
  const { ink, muted, line, surface } = colours();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: muted, size: 11 }, title: { font: { color: muted, size: 12 } }, automargin: true };
  const full = { font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 16, t: 34, b: 46 }, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink }, hoverlabel: { bgcolor: surface, bordercolor: line, font: { color: ink } }, dragmode: false, height,
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: muted } }, showlegend: true, ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  return Plotly.react(node, traces, full, { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg", filename: "board" } });
};

const shownIndices = (page) => shownModels(page).map(({ index }) => index);
const isNarrow = () => document.documentElement.clientWidth < 700;

// Ranks of both preparations by PC1 of the selected benchmarks, or on one benchmark.
const bumpRanks = (page) => ["direct", "trained"].map((view) => {
  if (page.state.bump === "pc1") return derive({ ...page.state, view }).ranks;
  const j = board.taskIndex.get(page.state.bump);
  return ranksOf(board.views[view].scores.map((row) => row[j]), board.benchmarks[j].higher);
});

const BUMP_LIMIT = 150;
// Sample points of the lines, which follow the smoothstep 3x² - 2x³ and so are horizontal at both ends.
const SAMPLES = Array.from({ length: 17 }, (_, k) => k / 16);

const drawBump = (page, card) => {
  const node = card.querySelector(".plot");
  if (!board.has("gain")) {
    node.hidden = true;
    return setNote(card, `No ${board.has("direct") ? "trained" : "direct"} scores in ${board.source}: ranks before and after training cannot be compared.`);
  }
  const [before, after] = bumpRanks(page);
  const all = shownIndices(page).filter((i) => before[i] !== null && after[i] !== null).sort((a, b) => after[a] - after[b]);
  const models = all.slice(0, BUMP_LIMIT);
  const what = all.length > models.length ? `the best ${BUMP_LIMIT} of ${all.length} models` : counted(models.length, "model");
  setNote(card, `Rank before and after training, ${what}.`);
  const { pins } = page.state;
  const named = new Set();
  const narrow = isNarrow();
  const traces = models.map((i) => {
    const model = board.models[i];
    const colour = familyColour(model.family);
    const first = !named.has(model.family);
    named.add(model.family);
    const loud = !pins.length || pins.includes(model.name);
    const [from, to] = [before[i], after[i]];
    return { type: "scatter", mode: "lines+markers+text", x: SAMPLES, y: SAMPLES.map((x) => from + (to - from) * x * x * (3 - 2 * x)),
      line: { width: pins.includes(model.name) ? 3.5 : 1.6, color: colour }, marker: { size: SAMPLES.map((x) => (x === 0 || x === 1 ? 7 : 0)), color: colour, line: { width: 0 } },
      opacity: loud ? 0.9 : 0.18, text: SAMPLES.map((x) => (x === 1 ? `${to}  ${shortName(model.name)}` : "")), textposition: "middle right", textfont: { size: narrow ? 9 : 11 },
      cliponaxis: false, name: plotText(model.family), legendgroup: model.family, showlegend: first, hoverinfo: "text",
      hovertext: `${plotText(model.name)}<br>direct ${from}, trained ${to}` };
  });
  const ranks = models.flatMap((i) => [before[i], after[i]]);
  return plot(node, traces, { margin: { l: 34, r: narrow ? 150 : 230, t: narrow ? 30 : 62, b: 12 }, showlegend: !narrow, legend: { orientation: "h", x: 0, y: 1, yref: "container", yanchor: "top", font: { color: colours().muted } },
    xaxis: { range: [-0.02, 1], tickvals: [0, 1], ticktext: ["direct", "trained"], side: "top", showgrid: false, zeroline: false, showline: false, automargin: false, fixedrange: true },
    yaxis: { range: [Math.max(...ranks, 1) + 0.8, Math.min(...ranks, 1) - 0.8], showgrid: false, zeroline: false, tickvals: [1, ...Array.from({ length: 100 }, (_, k) => 10 * (k + 1))], fixedrange: true } },
  Math.max(300, 90 + models.length * 15));
};

const tauOf = (view, places) => {
  const { tau } = board.views[view];
  const kept = places.filter((j) => tau[j].some((value) => value !== null));
  const z = kept.map((i) => kept.map((j) => tau[i][j]));
  const others = z.flatMap((row, i) => row.filter((value, j) => i !== j && value !== null));
  return { z, titles: kept.map((j) => plotText(board.benchmarks[j].title)), mean: others.length ? others.reduce((sum, value) => sum + value, 0) / others.length : null };
};

const drawTau = async (page, card) => {
  const nodes = card.querySelectorAll(".plot");
  const places = columnOrder().filter((j) => page.derived.columns.includes(board.benchmarks[j].task));
  const { surface, accent, warm, muted } = colours();
  const sentences = [];
  for (const [at, view] of ["direct", "trained"].entries()) {
    const available = board.has(view) && board.views[view].tau && places.length > 1;
    nodes[at].hidden = !available;
    if (!available) { sentences.push(board.has(view) ? `${view}: select at least two benchmarks` : `no ${view} scores in ${board.source}`); continue; }
    const { z, titles, mean } = tauOf(view, places);
    if (mean !== null) sentences.push(`${view}: mean ${mean.toFixed(2)}`);
    const narrow = isNarrow();
    await plot(nodes[at], [{ type: "heatmap", z, x: titles, y: titles, zmin: -1, zmax: 1, xgap: 1, ygap: 1, colorscale: [[0, warm], [0.5, surface], [1, accent]],
      hovertemplate: "%{y} and %{x}: %{z:.2f}<extra></extra>", showscale: at === 1 || !board.has("trained"),
      colorbar: { thickness: 8, len: 0.6, outlinewidth: 0, tickvals: [-1, 0, 1] } }],
    { title: { text: view, font: { size: 13 }, x: 0.02, xanchor: "left" }, margin: { l: 90, r: 8, t: 34, b: 90 }, showlegend: false,
      xaxis: { tickangle: -90, showgrid: false, tickfont: { size: narrow ? 8 : 10, color: muted }, fixedrange: true },
      yaxis: { autorange: "reversed", showgrid: false, tickfont: { size: narrow ? 8 : 10, color: muted }, fixedrange: true } }, narrow ? 380 : 520);
  }
  setNote(card, `Kendall's tau-b between the ranks of models on every two benchmarks; ${sentences.join("; ")}.`);
};

const drawScree = (page, card) => {
  const { accent, warm } = colours();
  const sentences = [];
  const traces = [];
  for (const [view, colour] of [["direct", warm], ["trained", accent]]) {
    if (!board.has(view)) { sentences.push(`no ${view} scores`); continue; }
    const { explained, trouble } = derive({ ...page.state, view });
    if (!explained) { sentences.push(`${view}: ${trouble ?? "no components"}`); continue; }
    sentences.push(`${view}: ${percent(explained[0])}`);
    const first = explained.slice(0, 10);
    traces.push({ type: "scatter", mode: "lines+markers", name: view, x: first.map((_, k) => k + 1), y: first.map((share) => 100 * share),
      line: { color: colour, width: 2 }, marker: { size: 7 }, hovertemplate: `component %{x}: %{y:.1f}%<extra>${view}</extra>` });
  }
  setNote(card, `Share of the variance that each principal component explains. First component: ${sentences.join(", ")}.`);
  return plot(card.querySelector(".plot"), traces, { xaxis: { title: { text: "principal component" }, dtick: 1, fixedrange: true }, yaxis: { rangemode: "tozero", ticksuffix: "%", fixedrange: true } }, 360);
};

const drawSize = (page, card) => {
  const { pc1, low, high, componentView } = page.derived;
  const shown = shownIndices(page).filter((i) => pc1[i] !== null);
  const sized = shown.filter((i) => board.models[i].params !== null);
  const without = shown.length - sized.length;
  setNote(card, `PC1 of the ${componentView} scores, ${counted(sized.length, "model")}${without ? `; ${without} of unknown size left out` : ""}. Filled: base models; open: other models.`);
  const families = board.families.filter((family) => sized.some((i) => board.models[i].family === family));
  const traces = families.map((family) => {
    const own = sized.filter((i) => board.models[i].family === family);
    const error = low && own.every((i) => low[i] !== null)
      ? { type: "data", symmetric: false, array: own.map((i) => high[i] - pc1[i]), arrayminus: own.map((i) => pc1[i] - low[i]), thickness: 1, width: 0, color: familyColour(family) } : undefined;
    return { type: "scatter", mode: "markers", name: plotText(family), x: own.map((i) => board.models[i].params), y: own.map((i) => pc1[i]), error_y: error,
      marker: { color: familyColour(family), size: own.map((i) => (page.state.pins.includes(board.models[i].name) ? 13 : 8)), symbol: own.map((i) => (board.models[i].kind === "base" ? "circle" : "circle-open")), line: { width: 1.5, color: familyColour(family) } },
      hoverinfo: "text", hovertext: own.map((i) => `${plotText(board.models[i].name)}<br>${billions(board.models[i].params)}, PC1 ${fixed(pc1[i], 0)}`) };
  });
  return plot(card.querySelector(".plot"), traces, { xaxis: { type: "log", title: { text: "parameters (billions)" }, tickvals: [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000], fixedrange: true },
    yaxis: { title: { text: "PC1" }, fixedrange: true } }, 360);
};
