(() => {
  // Computes the same as consequences() in reports/sections/decisions.py, at the prevalence chosen by the reader.
  const holder = document.getElementById("data-decisions");
  if (!holder) return;
  const { prevalence, per, points } = JSON.parse(holder.textContent);
  const select = document.getElementById("point");
  const range = document.getElementById("prevalence-range");
  const number = document.getElementById("prevalence-number");
  const shares = document.querySelectorAll("#decisions .share");
  const rows = [...document.querySelectorAll("#prevalence-table tbody tr")];
  const matrices = [...document.querySelectorAll("#decisions .matrix")];
  let chosen = prevalence;
  const ratio = (part, rest) => (part + rest > 0 ? part / (part + rest) : NaN);
  // A probability at another share of positives: its odds are multiplied by the ratio of the odds of both shares.
  const moved = (probability, share, old = 0.5) => {
    if (probability === null) return NaN;
    const positive = probability * share / old;
    return positive / (positive + (1 - probability) * (1 - share) / (1 - old));
  };
  const consequences = (point, share) => {
    const { threshold, sensitivity, specificity } = point;
    const shifted = moved(threshold, share, prevalence);
    if (sensitivity === null || specificity === null) return { shifted };
    const truePositives = per * sensitivity * share;
    const trueNegatives = per * specificity * (1 - share);
    const falsePositives = per * (1 - share) - trueNegatives;
    const falseNegatives = per * share - truePositives;
    return {
      shifted,
      true_positives: truePositives,
      false_positives: falsePositives,
      false_negatives: falseNegatives,
      true_negatives: trueNegatives,
      called_positive: truePositives + falsePositives,
      ppv: ratio(truePositives, falsePositives),
      ppv_low: moved(point.even_precision_low, share),
      ppv_high: moved(point.even_precision_high, share),
      npv: ratio(trueNegatives, falseNegatives),
      npv_low: moved(point.even_negative_value_low, 1 - share),
      npv_high: moved(point.even_negative_value_high, 1 - share),
    };
  };
  const write = (cell, value, digits) => {
    cell.dataset.value = Number.isNaN(value) ? "" : value;
    cell.textContent = Number.isNaN(value) ? "–" : value.toFixed(digits);
  };
  const fill = (element, results) => {
    const value = (name) => results[name] ?? NaN;
    const rates = ["ppv", "npv", "sensitivity", "specificity"];
    for (const cell of element.querySelectorAll("[data-name]")) {
      const { name } = cell.dataset;
      write(cell, value(name), Number(cell.dataset.digits ?? (rates.includes(name) ? 3 : 0)));
    }
    for (const cell of element.querySelectorAll("[data-span]")) {
      const ends = ["low", "high"].map((end) => value(`${cell.dataset.span}_${end}`));
      cell.textContent = ends.some(Number.isNaN) ? "" : ends.map((end) => end.toFixed(3)).join(" to ");
    }
  };
  const show = () => {
    for (const share of shares) share.textContent = `${(100 * chosen).toFixed(1)} %`;
    rows.forEach((row, i) => fill(row, consequences(points[i], chosen)));
    for (const matrix of matrices) {
      const point = points.find(({ point, split }) => point === select.value && split === matrix.dataset.split);
      fill(matrix, { ...point, ...consequences(point, chosen) });
    }
  };
  const start = () => {
    chosen = prevalence;
    range.value = number.value = (100 * prevalence).toFixed(1);
    show();
  };
  const choose = (source, other) => () => {
    const share = source.valueAsNumber / 100;
    // Ignore incomplete numbers while the reader types.
    if (!(share > 0 && share < 1)) return;
    other.value = source.value;
    chosen = share;
    show();
  };
  range.addEventListener("input", choose(range, number));
  number.addEventListener("input", choose(number, range));
  select.addEventListener("change", show);
  document.getElementById("prevalence-reset").addEventListener("click", start);
  document.querySelector("#decisions .prevalence").hidden = false;
  start();
})();
