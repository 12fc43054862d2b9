// Formatting of numbers. The minus sign is as wide as a digit, so that columns stay aligned.

const fixed = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "−"));

const signed = (value, digits) => {
  if (value === null || value === undefined) return "";
  const text = fixed(value, digits);
  return value > 0 ? `+${text}` : text;
};

// "110K", "1.4M", "410M", "8.03B" from billions
const billions = (params) => {
  if (params === null) return "";
  const [factor, unit, digits] = params < 1e-3 ? [1e6, "K", 2] : params < 1 ? [1e3, "M", params < 0.01 ? 2 : 3] : [1, "B", 3];
  return `${Number((params * factor).toPrecision(digits))}${unit}`;
};

// "1 model", "61 models"
const counted = (count, noun, nouns = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : nouns}`;

// Competition ranks, best first: ties share the better rank, and null stays null.
const ranksOf = (values, higher = true) => {
  const order = values.map((_, index) => index).filter((index) => values[index] !== null);
  order.sort((a, b) => (higher ? values[b] - values[a] : values[a] - values[b]));
  const ranks = values.map(() => null);
  order.forEach((index, place) => {
    const before = order[place - 1];
    ranks[index] = place > 0 && values[index] === values[before] ? ranks[before] : place + 1;
  });
  return ranks;
};
