(() => {
  const value = (cell, kind) => {
    const raw = cell.dataset.value ?? cell.textContent.trim();
    if (kind === "text") return raw;
    return raw === "" ? NaN : Number(raw);
  };
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    // Rows without a number come last in both directions.
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => {
      const header = button.closest("th");
      const { kind } = button.dataset;
      const next = header.ariaSort === "none" ? (kind === "number" ? "descending" : "ascending")
        : header.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of header.closest("thead").querySelectorAll("[aria-sort]")) other.ariaSort = "none";
      header.ariaSort = next;
      const body = header.closest("table").tBodies[0];
      // Tables with two rows of headings say which column a heading has.
      const column = Number(header.dataset.column ?? header.cellIndex);
      const sign = next === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row.cells[column], kind), row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // A button below a table that folds some of its rows, by a class of the table.
  const foldRows = (table, className, show, hide) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "all rows" });
    const fold = (folded) => {
      table.classList.toggle(className, folded);
      button.ariaExpanded = String(!folded);
      button.textContent = folded ? show : hide;
    };
    button.addEventListener("click", () => fold(button.ariaExpanded === "true"));
    const before = table.closest(".scroll") ?? table;
    (before.nextElementSibling?.matches("button.rows") ? before.nextElementSibling : before).after(button);
    fold(true);
  };
  const isZero = (row) => {
    const numbers = [...row.querySelectorAll("td")].filter((cell) => /^\s*([−+]?\d|–)/.test(cell.textContent));
    return numbers.length > 0 && !numbers.some((cell) => /[1-9]/.test(cell.textContent));
  };
  const [most, first] = [15, 10]; // style sheet: tables.css
  for (const table of document.querySelectorAll("main table")) {
    const rows = [...(table.tBodies[0]?.rows ?? [])];
    const zeros = rows.filter(isZero);
    const collapsed = zeros.length > 1 && zeros.length < rows.length;
    const rest = rows.length - (collapsed ? zeros.length : 0);
    // Tables inside closed details are shown on demand already; `whole` tables are the point of their section.
    if (rest > most && !table.matches(".whole") && !table.closest("details:not([open])")) {
      foldRows(table, "folded", `Show all ${rest} rows`, `Show ${first} rows`);
    }
    if (collapsed) {
      for (const row of zeros) row.classList.add("zero");
      foldRows(table, "without-zeros", `Show ${zeros.length} rows of zeros`, `Hide ${zeros.length} rows of zeros`);
    }
  }

  // Columns that the reader may add to a table.
  for (const box of document.querySelectorAll(".columns input")) {
    const cells = document.getElementById(box.closest(".columns").dataset.table).querySelectorAll(`[data-group="${box.value}"]`);
    const show = () => { for (const cell of cells) cell.hidden = !box.checked; };
    box.addEventListener("change", show);
    // Browsers may restore the choice of an earlier visit.
    show();
  }

  const unpack = async (text) => {
    const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Blob([await new Response(stream).arrayBuffer()], { type: "text/csv" });
  };
  for (const button of document.querySelectorAll("button[data-file]")) {
    button.addEventListener("click", async () => {
      const name = button.dataset.file;
      const blob = await unpack(JSON.parse(document.getElementById("files").textContent)[name]);
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    });
  }
})();
