// The chart of ranks before and after training: a line for each model.

const fillBumpChoice = (page) => {
  const select = byId("bump-by");
  select.append(element("option", { value: "pc1", text: "PC1" }), ...board.benchmarks.map(({ task, title }) => element("option", { value: task, text: title })));
  select.addEventListener("change", () => page.set({ bump: select.value }));
};

// Ranks of both preparations by PC1 of the selected benchmarks, or on one benchmark.
const bumpRanks = (page) => ["direct", "trained"].map((view) => {
  if (page.state.bump === "pc1") return derive({ ...page.state, view }).ranks;
  const j = board.taskIndex.get(page.state.bump);
  return ranksOf(board.views[view].scores.map((row) => row[j]), board.benchmarks[j].higher);
});

const BUMP_LIMIT = 150;
// Sample points of the lines, which follow the smoothstep 3x² - 2x³ and so are horizontal at both ends.
const SAMPLES = Array.from({ length: 17 }, (_, k) => k / 16);

const bumpHeight = () => {
  if (paper !== null) return 600;
  if (isNarrow()) return Math.min(620, Math.max(320, 60 + board.models.length * 12));
  return isMedium() ? 370 : 600;
};

// What is drawn: ranks before and after, the models by their rank after training, and which of them have thick lines.
const bumpOf = (page) => {
  const [before, after] = bumpRanks(page);
  const all = shownIndices(page).filter((i) => before[i] !== null && after[i] !== null).sort((a, b) => after[a] - after[b]);
  const { pins, bump } = page.state;
  const flagged = new Set(bump === "pc1" && !pins.length ? board.audit?.flagged.map(([i]) => i) : []);
  const isLoud = (i) => pins.includes(board.models[i].name) || flagged.has(i);
  return { before, after, all, models: all.slice(0, BUMP_LIMIT), flagged, isLoud };
};

const describeBump = (page) => {
  const { all, models, flagged, isLoud } = bumpOf(page);
  const what = all.length > models.length ? `The best ${BUMP_LIMIT} of ${all.length} models` : counted(models.length, "model");
  const colour = board.families.length > 1 ? " Colours are families." : "";
  const which = flagged.size && models.some(isLoud) ? " Thick lines: flagged by the audit." : "";
  return `${what}, each a line from its rank with direct scores (without fine-tuning) to its rank after training.${colour}${which}`;
};

const drawBump = (page, card) => {
  const node = card.querySelector(".plot");
  const { before, after, models, isLoud } = bumpOf(page);
  const hasPins = page.state.pins.length > 0;
  const ranks = models.flatMap((i) => [before[i], after[i]]);
  const span = [Math.max(...ranks, 1) + 0.8, Math.min(...ranks, 1) - 0.8];
  const named = new Set(labelled(models, { before, after, isLoud, apart: 11.5 * (span[0] - span[1]) / (bumpHeight() - 44) }));
  const colourOf = familyColours();
  const traces = models.map((i) => bumpLine(i, [before[i], after[i]],
    { colour: colourOf.get(board.models[i].family), named: named.has(i), loud: isLoud(i), quiet: hasPins && !isLoud(i) }));
  const longest = Math.max(8, ...[...named].map((i) => shortName(board.models[i].name).length));
  const margin = Math.min((card.clientWidth || paper) * 0.45, 38 + 6.2 * longest);
  return plot(node, traces, { margin: { l: 30, r: margin, t: 30, b: 12 }, showlegend: false,
    xaxis: { range: [-0.02, 1], tickvals: [0, 1], ticktext: ["direct", "trained"], side: "top", showgrid: false, zeroline: false, showline: false, automargin: false, fixedrange: true, tickfont: { size: 13, color: colours().ink } },
    yaxis: { range: span, showgrid: false, zeroline: false, tickvals: [1, ...Array.from({ length: 100 }, (_, k) => (models.length > 12 ? 10 * (k + 1) : k + 2))], fixedrange: true, automargin: false } });
};

// The models with a name at their line, as many as fit without overlap: loud lines first, then the largest changes of rank.
const labelled = (models, { before, after, isLoud, apart }) => {
  const order = models.slice().sort((a, b) => isLoud(b) - isLoud(a) || Math.abs(after[b] - before[b]) - Math.abs(after[a] - before[a]));
  const taken = [];
  for (const i of order) if (taken.every((other) => Math.abs(after[other] - after[i]) >= apart)) taken.push(i);
  return taken;
};

const bumpLine = (i, [from, to], { colour, named, loud, quiet }) => {
  const model = board.models[i];
    return { type: "scatter", mode: "lines+markers+text", x: SAMPLES, y: SAMPLES.map((x) => from + (to - from) * x * x * (3 - 2 * x)),
    line: { width: loud ? 3.5 : 1.6, color: colour }, marker: { opacity: 1, size: SAMPLES.map((x) => (x === 0 || x === 1 ? 7 : 0)), color: colour, line: { width: 0 } },
    opacity: quiet ? 0.18 : 1, text: SAMPLES.map((x) => (x === 1 && named ? `${to}  ${shortName(model.name)}` : "")), textposition: "middle right", textfont: { size: 11 },
    cliponaxis: false, name: plotText(model.family), showlegend: false, hoverinfo: "text", hovertext: `${plotText(model.name)}<br>direct ${from}, trained ${to}` };
};
