// The table of pinned models. The best score of each benchmark is bold. For two models it has their difference, in bold if it
// exceeds 1.96 standard errors of a difference of independent scores.

const makeCompare = (page) => {
  byId("unpin").addEventListener("click", () => page.set({ pins: [] }));
  byId("to-compare").addEventListener("click", () => {
    byId("compare").scrollIntoView({ block: "start" });
    byId("compare-body").focus({ preventScroll: true });
  });
  return () => {
    const models = page.state.pins.map((name) => board.models.find((model) => model.name === name));
    byId("compare").hidden = models.length === 0;
    byId("to-compare").hidden = models.length === 0;
    byId("to-compare").textContent = `Compare ${models.length} pinned`;
    byId("compare-body").replaceChildren(...(models.length ? [compareTable(page, models)] : []));
  };
};

const compareTable = (page, models) => {
  const two = models.length === 2;
  const head = element("tr", {}, element("th", { scope: "col", text: "Score" }), ...models.map((model) =>
    element("th", { scope: "col" }, element("i", { class: "dot", "--dot": familyColour(model.family) }), nameElement(model.name))),
  two ? element("th", { scope: "col", text: "difference" }) : null);
  const rows = [standingRow(page, models), ...page.derived.columns.map((task) => compareRow(page, models, board.taskIndex.get(task)))];
  return element("table", { class: "compare" }, element("thead", {}, head), element("tbody", {}, ...rows));
};

const standingRow = (page, models) => {
  const { pc1, low, high, ranks, componentView } = page.derived;
  const cells = models.map(({ index }) => {
    if (pc1[index] === null) return element("td", { text: "–" });
    const interval = low && low[index] !== null ? ` (${fixed(low[index], 0)} to ${fixed(high[index], 0)})` : "";
    return element("td", { text: fixed(pc1[index], 0) }, element("small", { text: `${interval} rank ${ranks[index]}` }));
  });
  const [a, b] = models.map(({ index }) => pc1[index]);
  const difference = models.length === 2 ? [element("td", { text: a === null || b === null ? "" : signed(a - b, 0) })] : [];
  return element("tr", { class: "standing-row" }, element("th", { scope: "row", text: `PC1, ${viewText(componentView)}` }), ...cells, ...difference);
};

const compareRow = (page, models, j) => {
  const benchmark = board.benchmarks[j];
  const { scores, view } = page.derived;
  const values = models.map(({ index }) => scores[index][j]);
  const known = values.filter((value) => value !== null);
  // Gains are oriented already. The best score may be the lowest one.
  const best = known.length > 1 ? (benchmark.higher || view === "gain" ? Math.max(...known) : Math.min(...known)) : null;
  const cells = models.map(({ index }, k) => {
    if (values[k] === null) return element("td", { class: "gap", text: "·" });
    const stderr = stderrOf(view, index, j);
    return element("td", { class: values[k] === best ? "best" : "", text: shownScore(benchmark, values[k], view) },
      stderr === null ? null : element("small", { text: ` ± ${fixed(stderr * benchmark.factor, benchmark.digits)}` }));
  });
  return element("tr", {}, element("th", { scope: "row", text: benchmark.title }), ...cells, ...(models.length === 2 ? [differenceCell(page, models, j)] : []));
};

const shownScore = (benchmark, value, view) =>
  (view === "gain" ? signed : fixed)(value * benchmark.factor, benchmark.digits);

const differenceCell = (page, models, j) => {
  const benchmark = board.benchmarks[j];
  const { scores, view } = page.derived;
  const [a, b] = models.map(({ index }) => scores[index][j]);
  if (a === null || b === null) return element("td", { class: "gap", text: "·" });
  const errors = models.map(({ index }) => stderrOf(view, index, j));
  const sure = errors.every((error) => error !== null) && Math.abs(a - b) > 1.96 * Math.hypot(...errors);
  return element("td", { class: sure ? "sure" : "", title: sure ? "more than 1.96 standard errors" : null,
    text: signed((a - b) * benchmark.factor, benchmark.digits) });
};
