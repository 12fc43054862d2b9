// The board in the page's data, and the values derived from the selected scores and columns. Statistics are part of the data
// (lm_harmony.analysis computed them); only the principal components of selected columns are computed here.

const UNKNOWN = "unknown";
const ownPart = (name) => name.slice(name.lastIndexOf("/") + 1) || name;

// The name of a kind of scores: "direct_5shot" is shown as "direct 5-shot".
const viewText = (view) => view.replace(/_(\d+)shot$/, " $1-shot");

const readBoard = (data) => {
  const made = { ...data };
  made.models = data.models.map((model, index) => ({ ...model, index, family: model.family ?? UNKNOWN, kind: model.kind ?? UNKNOWN }));
  made.taskIndex = new Map(data.benchmarks.map(({ task }, index) => [task, index]));
  made.families = [...new Set(made.models.map((model) => model.family))].sort((a, b) => (a === UNKNOWN) - (b === UNKNOWN) || a.localeCompare(b));
  made.kinds = [...new Set(made.models.map((model) => model.kind))].sort();
  made.sizes = data.sizes.filter((size) => made.models.some((model) => model.size === size));
  made.has = (view) => (view === "gain" ? Boolean(data.views.trained && data.views.direct) : Boolean(data.views[view]));
  // Direct scores, those with examples before the questions by their number, and trained scores, as far as there are any.
  made.preparations = Object.keys(data.views).filter(made.has);
  made.firstView = made.has("trained") ? "trained" : made.preparations[0];
  made.columns = data.benchmarks.filter(({ counts }) => counts).map(({ task }) => task);
  // Models whose names differ only before the last slash. Everywhere else the last part is enough.
  const ends = data.models.map(({ name }) => ownPart(name));
  made.sameEnds = new Set(data.models.map(({ name }) => name).filter((_, i) => ends.indexOf(ends[i]) !== ends.lastIndexOf(ends[i])));
  return made;
};

// The scores in the table, models x benchmarks. A gain is positive if training improved the score, also where lower is better.
const scoresOf = (view) => {
  if (view !== "gain") return board.views[view].scores;
  const { trained, direct } = board.views;
  return trained.scores.map((row, i) => row.map((value, j) => {
    const before = direct.scores[i][j];
    if (value === null || before === null) return null;
    return board.benchmarks[j].higher ? value - before : before - value;
  }));
};

const stderrOf = (view, i, j) => {
  const of = (name) => board.views[name]?.stderrs?.[i][j] ?? null;
  if (view !== "gain") return of(view);
  // Both scores are on the same examples, so their errors are not independent and the standard error of the gain is not known.
  return null;
};

const sameSet = (one, other) => one.length === other.length && one.every((task) => other.includes(task));

// The derived values of a state: scores, PC1 with its interval, ranks, explained variance, and the columns PC1 is computed from.
const derive = (state) => {
  const columns = state.columns?.length ? state.columns : board.columns;
  // Direct and trained PC1 are different axes and cannot be subtracted, so the PC1 beside gains is that of the trained scores.
  const view = state.view === "gain" ? "trained" : state.view;
  const shipped = board.views[view].components;
  const made = { view: state.view, componentView: view, columns, scores: scoresOf(state.view), shipped: false, low: null, high: null };
  if (shipped && sameSet(columns, board.columns)) {
    Object.assign(made, { shipped: true, pc1: shipped.pc1, low: shipped.low, high: shipped.high, explained: shipped.explained, ranks: shipped.rank,
      models: shipped.models, groups: shipped.group, rankLow: shipped.rank_low, rankHigh: shipped.rank_high, basis: shipped.basis });
  } else Object.assign(made, recomputed(view, columns));
  made.pc1 ??= board.models.map(() => null);
  made.ranks ??= ranksOnBoard(made.pc1);
  const averaged = columns.map((task) => board.taskIndex.get(task)).filter((j) => isAveraged(board.benchmarks[j]));
  made.averaged = averaged.length;
  made.means = made.scores.map((row) => (averaged.length > 1 && averaged.every((j) => row[j] !== null)
    ? averaged.reduce((sum, j) => sum + row[j], 0) / averaged.length : null));
  return made;
};

// Scores in percent have a mean. Other units, and metrics where lower is better, would make it meaningless.
const isAveraged = ({ factor, higher }) => factor === 100 && higher;

// Ranks are ranks among the reference models, so that other models do not change them.
const ranksOnBoard = (pc1) => {
  if (!board.models.some(({ reference }, i) => reference && pc1[i] !== null)) return ranksOf(pc1);
  const placed = pc1.filter((value, i) => value !== null && board.models[i].reference);
  return pc1.map((value) => (value === null ? null : 1 + placed.filter((other) => other > value).length));
};

const recomputed = (view, columns) => {
  if (columns.length < 2) return { trouble: "select at least two benchmarks" };
  const chosen = columns.map((task) => board.taskIndex.get(task));
  const oriented = board.views[view].scores.map((row) =>
    chosen.map((j) => (row[j] === null || board.benchmarks[j].higher ? row[j] : -row[j])));
  const reference = board.models.map((model) => model.reference);
  // PC1 is fitted on the reference models, or on all models if no reference model has all these scores.
  const complete = oriented.map((row) => row.every((value) => value !== null));
  const fitted = reference.some((is, i) => is && complete[i]) ? reference : board.models.map(() => true);
  const found = firstComponent(oriented, fitted, columns.indexOf([...columns].sort()[0]));
  if (found === null) return { trouble: "fewer than two models have scores on all selected benchmarks" };
  if (found.constant) {
    const titles = columns.filter((_, j) => found.constant[j]).map((task) => board.benchmarks[board.taskIndex.get(task)].title);
    return { trouble: `all models have the same score on ${titles.join(", ")}` };
  }
  return found;
};

// The colour range of every benchmark, from the 10th percentile to the best score. With the minimum, a few tiny models would
// leave no contrast among the others. The range is over all models, so that filters do not change colours.
const extentsOf = (scores) => board.benchmarks.map(({ higher }, j) => {
  const values = scores.map((row) => row[j]).filter((value) => value !== null).sort((a, b) => (higher ? a - b : b - a));
  return values.length ? { worst: values[Math.floor(values.length / 10)], best: values.at(-1), least: values[0] } : null;
});

const isShown = (model, state, words) =>
  (!state.families.length || state.families.includes(model.family)) && (!state.kinds.length || state.kinds.includes(model.kind)) &&
  (!state.sizes.length || state.sizes.includes(model.size)) && words.every((word) => model.name.toLowerCase().includes(word));

const wordsOf = (search) => search.toLowerCase().split(/\s+/).filter(Boolean);
