// The board as the page's data has it, and what follows from the reader's choice of scores and columns. Statistics come from
// the data (lm_harmony.analysis made them); only the components of chosen columns are computed here.

const UNKNOWN = "unknown";

const readBoard = (data) => {
  const made = { ...data };
  made.models = data.models.map((model, index) => ({ ...model, index, family: model.family ?? UNKNOWN, kind: model.kind ?? UNKNOWN }));
  made.taskIndex = new Map(data.benchmarks.map(({ task }, index) => [task, index]));
  made.families = [...new Set(made.models.map((model) => model.family))].sort((a, b) => (a === UNKNOWN) - (b === UNKNOWN) || a.localeCompare(b));
  made.kinds = [...new Set(made.models.map((model) => model.kind))].sort();
  made.sizes = data.sizes.filter((size) => made.models.some((model) => model.size === size));
  made.has = (view) => (view === "gain" ? Boolean(data.views.trained && data.views.direct) : Boolean(data.views[view]));
  made.firstView = made.has("trained") ? "trained" : "direct";
  made.columns = data.benchmarks.filter(({ counts }) => counts).map(({ task }) => task);
  return made;
};

// Scores as they stand in the table: models x benchmarks; the gain is positive where training improved the score, also where
// lower is better.
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
  // The two scores are of the same examples, so their errors are not independent: none is claimed for the difference.
  return null;
};

const sameSet = (one, other) => one.length === other.length && one.every((task) => other.includes(task));

// What the table shows for a state: PC1 with its interval, ranks, explained variance, and in words what it stands on.
const derive = (state) => {
  const columns = state.columns ?? board.columns;
  // A difference of two PC1 would be of two different axes: beside the gains stands the PC1 of the trained scores.
  const view = state.view === "gain" ? "trained" : state.view;
  const shipped = board.views[view].components;
  const made = { view: state.view, componentView: view, columns, scores: scoresOf(state.view), shipped: false, low: null, high: null };
  if (shipped && sameSet(columns, board.columns)) {
    Object.assign(made, { shipped: true, pc1: shipped.pc1, low: shipped.low, high: shipped.high, explained: shipped.explained,
      models: shipped.models, groups: shipped.groups, rankLow: shipped.rank_low, rankHigh: shipped.rank_high });
  } else Object.assign(made, recomputed(view, columns));
  made.pc1 ??= board.models.map(() => null);
  made.ranks = ranksOf(made.pc1);
  return made;
};

const recomputed = (view, columns) => {
  if (columns.length < 2) return { trouble: "choose two benchmarks or more" };
  const chosen = columns.map((task) => board.taskIndex.get(task));
  const oriented = board.views[view].scores.map((row) =>
    chosen.map((j) => (row[j] === null || board.benchmarks[j].higher ? row[j] : -row[j])));
  const reference = board.models.map((model) => model.reference);
  // A reference's axis is that of its own models; where none of them has these scores, the axis is that of all models.
  const whole = oriented.map((row) => row.every((value) => value !== null));
  const fitted = reference.some((is, i) => is && whole[i]) ? reference : board.models.map(() => true);
  const found = firstComponent(oriented, fitted);
  if (found === null) return { trouble: "fewer than two models have all chosen benchmarks" };
  if (found.constant) {
    const titles = columns.filter((_, j) => found.constant[j]).map((task) => board.benchmarks[board.taskIndex.get(task)].title);
    return { trouble: `all models score alike on ${titles.join(", ")}` };
  }
  return found;
};

// From the 10th percentile to the best score of every benchmark, for the colours: a few tiny models would else paint all others
// alike. Of all models, so that a filter recolours nothing.
const extentsOf = (scores) => board.benchmarks.map(({ higher }, j) => {
  const values = scores.map((row) => row[j]).filter((value) => value !== null).sort((a, b) => (higher ? a - b : b - a));
  return values.length ? { worst: values[Math.floor(values.length / 10)], best: values.at(-1), least: values[0] } : null;
});

const isShown = (model, state, words) =>
  (!state.families.length || state.families.includes(model.family)) && (!state.kinds.length || state.kinds.includes(model.kind)) &&
  (!state.sizes.length || state.sizes.includes(model.size)) && words.every((word) => model.name.toLowerCase().includes(word));

const wordsOf = (search) => search.toLowerCase().split(/\s+/).filter(Boolean);
