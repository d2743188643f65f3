(() => {
  // What reports/decisions.py: consequences() computes, at the prevalence that the reader chooses.
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
    const found = sensitivity * share;
    const wrong = (1 - specificity) * (1 - share);
    const missed = (1 - sensitivity) * share;
    const left = specificity * (1 - share);
    const positive = threshold * share / prevalence;
    return {
      shifted: positive / (positive + (1 - threshold) * (1 - share) / (1 - prevalence)),
      at_precision: ratio(found, wrong),
      at_negative_value: ratio(left, missed),
      alarms: per * (found + wrong),
      false_alarms: per * wrong,
      missed: per * missed,
    };
  };
  const show = (share) => {
    words.textContent = `${(100 * share).toFixed(1)} %`;
    rows.forEach((row, i) => {
      const found = consequences(points[i], share);
      for (const cell of row.querySelectorAll("td[data-name]")) {
        const value = found[cell.dataset.name] ?? NaN;
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
    // Half-typed numbers wait.
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
