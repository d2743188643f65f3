(() => {
  // Computes the same as consequences() in reports/sections/decisions.py, at the prevalence chosen by the reader.
  const holder = document.getElementById("data-decisions");
  if (!holder) return;
  const { prevalence, per, points } = JSON.parse(holder.textContent);
  const range = document.getElementById("prevalence-range");
  const number = document.getElementById("prevalence-number");
  const words = document.getElementById("prevalence-words");
  const rows = [...document.querySelectorAll("#prevalence-table tbody tr")];
  const ratio = (part, rest) => (part + rest > 0 ? part / (part + rest) : NaN);
  const consequences = (point, share) => {
    const { threshold, sensitivity, specificity } = point;
    if (sensitivity === null || specificity === null) return {};
    const truePositives = sensitivity * share;
    const falsePositives = (1 - specificity) * (1 - share);
    const falseNegatives = (1 - sensitivity) * share;
    const trueNegatives = specificity * (1 - share);
    const positive = threshold * share / prevalence;
    return {
      shifted: positive / (positive + (1 - threshold) * (1 - share) / (1 - prevalence)),
      at_precision: ratio(truePositives, falsePositives),
      at_negative_value: ratio(trueNegatives, falseNegatives),
      alarms: per * (truePositives + falsePositives),
      false_alarms: per * falsePositives,
      missed: per * falseNegatives,
    };
  };
  const show = (share) => {
    words.textContent = `${(100 * share).toFixed(1)} %`;
    rows.forEach((row, i) => {
      const results = consequences(points[i], share);
      for (const cell of row.querySelectorAll("td[data-name]")) {
        const value = results[cell.dataset.name] ?? NaN;
        const digits = ["alarms", "false_alarms", "missed"].includes(cell.dataset.name) ? 1 : 3;
        cell.dataset.value = Number.isNaN(value) ? "" : value;
        cell.textContent = Number.isNaN(value) ? "–" : value.toFixed(digits);
      }
    });
  };
  const start = () => {
    range.value = number.value = (100 * prevalence).toFixed(1);
    show(prevalence);
  };
  const choose = (source, other) => () => {
    const share = source.valueAsNumber / 100;
    // Ignore incomplete numbers while the reader types.
    if (!(share > 0 && share < 1)) return;
    other.value = source.value;
    show(share);
  };
  range.addEventListener("input", choose(range, number));
  number.addEventListener("input", choose(number, range));
  document.getElementById("prevalence-reset").addEventListener("click", start);
  document.querySelector("#decisions .prevalence").hidden = false;
  start();
})();
