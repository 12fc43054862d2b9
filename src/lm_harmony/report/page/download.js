// Downloads: the models that pass the filters in the order of the table, and the selected benchmarks, at full precision.

const shownModels = (page) => page.table.rows({ search: "applied", order: "applied" }).data().toArray();

const download = (page, kind) => {
  const [text, type] = kind === "json" ? [jsonOf(page), "application/json"] : [csvOf(page, kind), "text/csv"];
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const suffix = kind === "json" ? "json" : "csv";
  element("a", { href: address, download: kind === "long" ? `board-scores.${suffix}` : `board-${page.derived.view}.${suffix}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
};

// Names that a spreadsheet would interpret as formulas get a leading apostrophe, as OWASP recommends.
const csvName = (name) => csvField(/^'*[=+\-@\t\r]/.test(name) ? `'${name}` : name);

const csvField = (value) => {
  if (value === null || value === undefined) return "";
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

// Twelve significant digits are exact for scores on up to 10,000 examples and hide binary rounding.
const plain = (value) => (value === null ? null : Number(value.toPrecision(12)));

const csvOf = (page, kind) => {
  const lines = kind === "long" ? longLines(page) : wideLines(page);
  return `${lines.map((fields) => fields.join(",")).join("\r\n")}\r\n`;
};

// The wide layout that `lm-harmony leaderboard` reads: in percent, text corpora in bits per byte. Gains are not scores, so their
// columns get other names, which no reader accepts as benchmarks.
const wideLines = (page) => {
  const { columns, view, ranks, pc1, low, high, scores } = page.derived;
  const heads = columns.map((task) => csvName(view === "gain" ? `${task} (gain)` : task));
  const lines = [["model", "preparation", "rank", "pc1", "pc1_low", "pc1_high", ...heads]];
  for (const model of shownModels(page)) {
    const i = model.index;
    const cells = columns.map((task) => {
      const j = board.taskIndex.get(task);
      return csvField(scores[i][j] === null ? null : plain(scores[i][j] * board.benchmarks[j].scale));
    });
    const place = [ranks[i], pc1[i], low?.[i] ?? null, high?.[i] ?? null].map((value) => csvField(value));
    lines.push([csvName(model.name), view, ...place, ...cells]);
  }
  return lines;
};

// The long layout that `lm-harmony leaderboard` reads: one line per score.
const longLines = (page) => {
  const lines = [["model", "benchmark", "preparation", "score", "stderr", "count", "metric", "higher_is_better"]];
  for (const model of shownModels(page)) {
    for (const task of page.derived.columns) {
      const j = board.taskIndex.get(task);
      const { metric, higher } = board.benchmarks[j];
      for (const view of board.preparations) {
        const held = board.views[view];
        const score = held.scores[model.index][j];
        if (score === null) continue;
        const stderr = held.stderrs?.[model.index][j] ?? null;
        const numbers = [score, stderr, held.counts?.[model.index][j] ?? null].map((value) => csvField(value));
        lines.push([csvName(model.name), csvName(task), view, ...numbers, csvName(metric), higher]);
      }
    }
  }
  return lines;
};

const jsonOf = (page) => {
  const { columns, view, componentView, ranks, pc1, low, high } = page.derived;
  const models = shownModels(page).map((model) => {
    const i = model.index;
    const scores = {};
    for (const task of columns) {
      const j = board.taskIndex.get(task);
      scores[task] = {};
      for (const name of board.preparations) {
        scores[task][name] = { score: board.views[name].scores[i][j], stderr: board.views[name].stderrs?.[i][j] ?? null };
      }
    }
    return { model: model.name, family: model.family, kind: model.kind, params_b: model.params, rank: ranks[i], pc1: pc1[i],
      pc1_low: low?.[i] ?? null, pc1_high: high?.[i] ?? null, scores };
  });
  return JSON.stringify({ source: board.source, reference: board.reference, made_with: board.version, view, pc1_of: componentView,
    benchmarks: columns, models }, null, 1);
};
