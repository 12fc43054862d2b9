// The four charts. Plotly is large, so it is unpacked after the table was painted. Charts without data are hidden.
// Two of them are above the table. Their size depends on the width and on the board, never on what is selected: otherwise the
// menus would move when the charts are drawn, and a click would miss the box that it began on.

// Twelve hues, each dark enough on the light surface and light enough on the dark one. More families reuse them in order.
const HUES = ["light-dark(#4e79a7, #5f88b4)", "light-dark(#d27521, #e08a3c)", "light-dark(#c9565b, #cd6468)", "light-dark(#4a9996, #4fa3a0)",
  "light-dark(#5e9c52, #5f9e53)", "light-dark(#a98821, #c9a227)", "light-dark(#9b72a8, #9e77ab)", "light-dark(#d36d88, #d87f96)",
  "light-dark(#8d6e58, #a07e66)", "light-dark(#6b8ccf, #6f8fd0)", "light-dark(#7c9739, #7f9b3a)", "light-dark(#808489, #81858a)"];
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
    { card: byId("chart-bump"), describe: describeBump, draw: drawBump, height: bumpHeight, has: board.has("gain") },
    { card: byId("chart-tau"), describe: describeTau, draw: drawTau, height: heatHeight, has: tauViews().length > 0 },
    { card: byId("chart-scree"), draw: drawScree, height: () => 360, has: board.preparations.some(shows) },
    { card: byId("chart-size"), draw: drawSize, height: () => 360, has: board.models.some(({ params }) => params !== null) && board.preparations.some(shows) },
  ];
  charts.forEach(({ card, has }) => { card.hidden = !has; });
  // Without both kinds of scores there is no comparison to begin with, and the table comes first.
  if (!board.has("gain")) byId("charts").prepend(byId("chart-tau"), byId("findings"));
  byId("story").hidden = !board.has("gain");
  byId("charts").hidden = ![...byId("charts").children].some((card) => !card.hidden);
  if (board.has("gain")) fillBumpChoice(page);
  const present = charts.filter(({ has }) => has);
  // The space of the charts is reserved before they are drawn.
  const reserve = () => {
    placeHeatMaps();
    for (const { card, height } of present) {
      card.querySelector(".note").style.minHeight = "";
      card.querySelectorAll(".plot").forEach((node) => { node.style.height = `${height()}px`; });
    }
  };
  reserve();
  let ready = null;
  // The number of changes so far. A change while a chart is drawn makes that drawing old.
  let turn = 0;
  const refresh = async ({ card, draw }, own) => {
    try {
      ready ??= afterPaint().then(() => load("plotly"));
      await ready;
      await draw(page, card);
      nameFigures(card);
      if (own === turn) card.dataset.drawn = "true";
    } catch (error) {
      // If the library cannot be unpacked, the table still works.
      setNote(card, `The chart cannot be drawn: ${error.message}`);
    }
  };
  // All charts are drawn, one after another, so that they are there before the reader scrolls to them.
  const refreshAll = async () => {
    const own = turn;
    for (const chart of present) if (own === turn) await refresh(chart, own);
  };
  listenForPrinting(page, present, reserve);
  // While the reader types a search, the table is redrawn at once and the charts after a pause.
  let pause;
  const redrawSoon = () => {
    turn += 1;
    byId("bump-by").value = page.state.bump;
    present.forEach(({ card, describe }) => {
      delete card.dataset.drawn;
      if (describe) setNote(card, describe(page));
    });
    clearTimeout(pause);
    pause = setTimeout(refreshAll, 120);
  };
  let width = document.documentElement.clientWidth;
  addEventListener("resize", () => {
    if (paper || width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    reserve();
    redrawSoon();
  });
  return redrawSoon;
};

// A screen reader gets the title and the sentence of a chart as the name of each figure.
const nameFigures = (card) => card.querySelectorAll(".plot").forEach((node) => {
  node.setAttribute("role", "figure");
  node.setAttribute("aria-label", `${card.querySelector("h2").textContent}. ${card.querySelector(".note").textContent}`);
});

let paper = null;
// On paper the charts have light colours and the width of a page.
const listenForPrinting = (page, charts, reserve) => {
  const draw = (width) => {
    paper = width;
    reserve();
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

// A note keeps the lines that it has had, so that a shorter one does not move what is below it.
const setNote = (card, text) => {
  const note = card.querySelector(".note");
  note.textContent = text;
  note.style.minHeight = `${note.offsetHeight}px`;
};

// A colour as the browser computes it for the current theme.
const computedColour = (colour) => {
  const probe = document.body.appendChild(element("i", { hidden: true }));
  probe.style.color = colour;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const colours = () => Object.fromEntries(["ink", "muted", "line", "surface", "accent", "warm", "agree", "disagree"]
  .map((name) => [name, computedColour(`var(--${name})`)]));

const familyColours = () => new Map(board.families.map((family) => [family, computedColour(familyColour(family))]));

const plot = (node, traces, layout) => {
  const { ink, muted, line, surface } = colours();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: muted, size: 11 }, title: { font: { color: muted, size: 12 } }, automargin: true };
  const full = { font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 16, t: 34, b: 46 }, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink }, hoverlabel: { bgcolor: surface, bordercolor: line, font: { color: ink } }, dragmode: false, height: Number.parseInt(node.style.height, 10),
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: muted } }, showlegend: true,
    ...(paper ? { width: paper, autosize: false } : { autosize: true }), ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  return Plotly.react(node, traces, full, { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg", filename: "board" } });
};

const shownIndices = (page) => shownModels(page).map(({ index }) => index);
// The widths at which page.css changes the layout.
const isNarrow = () => matchMedia("(max-width: 700px)").matches;
const isMedium = () => matchMedia("(max-width: 1200px)").matches;

const drawScree = (page, card) => {
  const { accent, warm } = colours();
  const sentences = [];
  const traces = [];
  for (const view of board.preparations) {
    const name = viewText(view);
    const { explained, trouble } = derive({ ...page.state, view });
    if (!explained) { sentences.push(`${name}: ${trouble ?? "no components"}`); continue; }
    sentences.push(`${name}: ${percent(explained[0])}`);
    const first = explained.slice(0, 10);
    const examples = board.preparations.filter((one) => one !== "direct" && one !== "trained");
    const colour = { direct: warm, trained: accent }[view] ?? computedColour(HUES[(2 + examples.indexOf(view)) % HUES.length]);
    traces.push({ type: "scatter", mode: "lines+markers", name, x: first.map((_, k) => k + 1), y: first.map((share) => 100 * share),
      line: { color: colour, width: 2 }, marker: { size: 7 }, hovertemplate: `component %{x}: %{y:.1f}%<extra>${name}</extra>` });
  }
  setNote(card, `Share of the variance that each principal component explains. First component, ${sentences.join(", ")}.`);
  return plot(card.querySelector(".plot"), traces, { xaxis: { title: { text: "principal component" }, dtick: 1, fixedrange: true }, yaxis: { rangemode: "tozero", ticksuffix: "%", fixedrange: true } });
};

// From 10 thousand to 3 trillion parameters, in billions.
const SIZE_TICKS = Array.from({ length: 9 }, (_, k) => 10 ** (k - 5)).flatMap((decade) => [decade, 3 * decade]);

const drawSize = (page, card) => {
  const { pc1, low, high, componentView } = page.derived;
  const shown = shownIndices(page).filter((i) => pc1[i] !== null);
  const sized = shown.filter((i) => board.models[i].params !== null);
  const without = shown.length - sized.length;
  const symbols = board.kinds.length > 1 ? " Filled: base models; open: other models." : "";
  setNote(card, `PC1 of the ${viewText(componentView)} scores, ${counted(sized.length, "model")}${without ? `; ${without} of unknown size left out` : ""}.${symbols}`);
  // The base models of a family come first, so that the legend shows the filled symbol where there is one.
  sized.sort((a, b) => (board.models[a].kind !== "base") - (board.models[b].kind !== "base"));
  const families = board.families.filter((family) => sized.some((i) => board.models[i].family === family));
  const colourOf = familyColours();
  const traces = families.map((family) => {
    const colour = colourOf.get(family);
    const isFilled = (i) => board.models[i].kind === "base" || board.kinds.length === 1;
    const own = sized.filter((i) => board.models[i].family === family);
    const error = low && own.every((i) => low[i] !== null)
      ? { type: "data", symmetric: false, array: own.map((i) => high[i] - pc1[i]), arrayminus: own.map((i) => pc1[i] - low[i]), thickness: 1, width: 0, color: colour } : undefined;
    return { type: "scatter", mode: "markers", name: plotText(family), x: own.map((i) => board.models[i].params), y: own.map((i) => pc1[i]), error_y: error,
      marker: { color: colour, opacity: 1, size: own.map((i) => (page.state.pins.includes(board.models[i].name) ? 13 : 8)), symbol: own.map((i) => (isFilled(i) ? "circle" : "circle-open")), line: { width: 1.5, color: colour } },
      hoverinfo: "text", hovertext: own.map((i) => `${plotText(board.models[i].name)}<br>${billions(board.models[i].params)}, PC1 ${fixed(pc1[i], 0)}`) };
  });
  return plot(card.querySelector(".plot"), traces, { showlegend: families.length > 1, xaxis: { type: "log", title: { text: "parameters" }, tickvals: SIZE_TICKS, ticktext: SIZE_TICKS.map(billions), fixedrange: true },
    yaxis: { title: { text: "PC1" }, fixedrange: true } });
};
