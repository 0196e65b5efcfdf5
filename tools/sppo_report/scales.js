// Axes: ticks, extents, smoothing, and steps as iterations.

const OUTLIERS = 0.01; // the share of points that may leave the frame at either end if they would flatten the rest

// The iteration that a step belongs to, with the share of it that is done behind the point.
function iterationOf(run, step) {
  const {steps, values} = run.iteration_starts;
  if (steps.length < 2) return values.length ? values[0] : step;
  const i = Math.min(Math.max(countUpTo(steps, step) - 1, 0), steps.length - 2);
  return Math.max(values[i] + (step - steps[i]) / (steps[i + 1] - steps[i]) * (values[i + 1] - values[i]), values[0]);
}

// Means over a window around each point, which is shorter at the ends.
function smoothed(values) {
  const half = Math.max(1, Math.round(values.length / 50));
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const start = Math.max(0, i - half), end = Math.min(values.length, i + half + 1);
    return (sums[end] - sums[start]) / (end - start);
  });
}

// The smallest and the largest of all values.
function extent(arrays) {
  let low = Infinity, high = -Infinity;
  for (const values of arrays) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

// The extent without outliers, if that makes the frame less than a third as high; else null.
function innerExtent(arrays) {
  const sorted = arrays.flat().sort((a, b) => a - b), cut = Math.ceil(OUTLIERS * sorted.length);
  if (sorted.length <= FEW_POINTS) return null;
  const [low, high] = [sorted[cut], sorted[sorted.length - 1 - cut]], whole = sorted[sorted.length - 1] - sorted[0];
  return high > low && 3 * (high - low) < whole ? [low, high] : null;
}

// Round numbers that cover [low, high].
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step + 0); // no −0
  return found;
}

function logTicks(low, high) {
  const found = [], decades = Math.log10(high / low);
  const factors = decades < 1.5 ? [1, 2, 5] : [1], every = Math.max(1, Math.ceil(decades / 4));
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % every === 0) found.push(...factors.map((factor) => factor * 10 ** power));
  }
  return found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}
