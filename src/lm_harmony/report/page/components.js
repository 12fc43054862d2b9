// Principal components of the selected benchmarks, computed as in lm_harmony.analysis.pca: each benchmark is standardised over
// the models of the fit, components are eigenvectors of the correlation matrix, and the sign of the first is chosen so that better
// models have higher scores. Tests check that both agree.

// Eigenvalues (largest first) and eigenvectors of a symmetric matrix by cyclic Jacobi rotations (Golub & Van Loan, section 8.5).
// With at most a few dozen benchmarks, speed does not matter.
const eigen = (symmetric) => {
  const size = symmetric.length;
  const a = symmetric.map((row) => row.slice());
  const vectors = a.map((_, i) => a.map((__, j) => (i === j ? 1 : 0)));
  for (let sweep = 0; sweep < 60; sweep += 1) {
    let off = 0;
    for (let p = 0; p < size; p += 1) for (let q = p + 1; q < size; q += 1) off += a[p][q] ** 2;
    if (off < 1e-24) break;
    for (let p = 0; p < size; p += 1) for (let q = p + 1; q < size; q += 1) rotate(a, vectors, p, q);
  }
  const order = a.map((_, i) => i).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => vectors.map((row) => row[i])) };
};

const rotate = (a, vectors, p, q) => {
  if (Math.abs(a[p][q]) < 1e-300) return;
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  for (let k = 0; k < a.length; k += 1) [a[k][p], a[k][q]] = [c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]];
  for (let k = 0; k < a.length; k += 1) [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
  for (const row of vectors) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
};

// scores: oriented scores, models x benchmarks, null for a missing one; fitted: mask of the models that it may be fitted on; first:
// the column whose loading is positive if the loadings add up to 0, as those of two benchmarks with opposite orders do.
// Returns null with fewer than two complete models, else PC1 (times 100) of every model that has all the benchmarks.
const firstComponent = (scores, fitted, first) => {
  const complete = scores.map((row) => row.every((value) => value !== null));
  const rows = scores.filter((_, index) => complete[index] && fitted[index]);
  if (rows.length < 2) return null;
  const means = rows[0].map((_, j) => rows.reduce((sum, row) => sum + row[j], 0) / rows.length);
  const scales = means.map((mean, j) => Math.sqrt(rows.reduce((sum, row) => sum + (row[j] - mean) ** 2, 0) / rows.length));
  const constant = scales.map((scale, j) => scale <= 1e-12 * Math.max(1, Math.abs(means[j])));
  if (constant.some(Boolean)) return { constant };
  const standard = (row) => row.map((value, j) => (value - means[j]) / scales[j]);
  const z = rows.map(standard);
  const correlations = means.map((_, i) => means.map((__, j) => z.reduce((sum, row) => sum + row[i] * row[j], 0) / z.length));
  const { values, vectors } = eigen(correlations);
  const total = values.reduce((sum, value) => sum + value, 0);
  const sum = vectors[0].reduce((whole, value) => whole + value, 0);
  const direction = (Math.abs(sum) < 1e-9 ? vectors[0][first] : sum) < 0 ? -1 : 1;
  const loadings = vectors[0].map((value) => direction * value);
  const project = (row) => 100 * standard(row).reduce((sum, value, j) => sum + value * loadings[j], 0);
  return {
    pc1: scores.map((row, index) => (complete[index] ? project(row) : null)),
    explained: values.map((value) => Math.max(0, value) / total),
    loadings,
    models: rows.length,
  };
};
