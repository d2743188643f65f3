(() => {
  const nav = document.querySelector("nav.contents");
  const toggle = nav.querySelector(".toggle");
  const here = nav.querySelector(".here");
  const search = nav.querySelector("input");
  const found = nav.querySelector(".found");

  // One entry per section, from the page, and one per heading in it. Headings without an id get one.
  const entries = [];
  for (const item of nav.querySelectorAll("li")) {
    const section = document.getElementById(item.firstElementChild.hash.slice(1));
    const entry = { item, target: section, parent: null };
    entries.push(entry);
    const list = document.createElement("ol");
    for (const heading of section.querySelectorAll("h3")) {
      heading.id ||= `${section.id}-heading-${list.children.length + 1}`;
      const child = document.createElement("li");
      const link = document.createElement("a");
      link.href = `#${heading.id}`;
      link.textContent = heading.textContent;
      child.append(link);
      list.append(child);
      entries.push({ item: child, target: heading, parent: entry });
    }
    if (list.children.length) item.append(list);
  }
  const linkOf = ({ item }) => item.querySelector("a");

  const filter = () => {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    nav.classList.toggle("searching", terms.length > 0);
    let count = 0;
    for (const entry of entries) {
      const text = `${linkOf(entry).textContent} ${entry.parent ? "" : entry.target.querySelector("h2").textContent}`.toLowerCase();
      entry.matches = terms.every((term) => text.includes(term));
      entry.item.hidden = !entry.matches;
      if (entry.matches) count += 1;
      // A heading that matches keeps its section visible.
      if (entry.matches && entry.parent) entry.parent.item.hidden = false;
    }
    found.textContent = terms.length ? `${count} ${count === 1 ? "match" : "matches"}` : "";
  };
  const fold = (open) => {
    nav.classList.toggle("open", open);
    toggle.ariaExpanded = String(open);
  };
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let details = target.closest("details"); details; details = details.parentElement.closest("details")) details.open = true;
    // Smooth scrolling would aim at where the target was before charts and details above it appeared.
    target.scrollIntoView({ behavior: "instant" });
  };

  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      search.value = "";
      filter();
    } else if (event.key === "Enter") {
      const first = entries.find((entry) => entry.matches);
      if (search.value.trim() && first) linkOf(first).click();
    }
  });
  toggle.addEventListener("click", () => fold(!nav.classList.contains("open")));
  nav.addEventListener("click", (event) => event.target.closest("a") && fold(false));
  nav.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target === search || !nav.classList.contains("open")) return;
    fold(false);
    toggle.focus();
  });
  addEventListener("hashchange", reveal);

  const mark = () => {
    const edge = 0.25 * innerHeight;
    const above = entries.filter(({ target }) => !target.closest("details:not([open])") && target.getBoundingClientRect().top <= edge);
    const current = above.at(-1) ?? entries[0];
    const section = current.parent ?? current;
    for (const entry of entries) {
      const link = linkOf(entry);
      if (entry === current) link.ariaCurrent = "true";
      else link.removeAttribute("aria-current");
      entry.item.classList.toggle("here", entry === section);
    }
    here.textContent = `: ${linkOf(section).textContent}`;
  };
  let scheduled = false;
  const markSoon = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      mark();
    });
  };
  addEventListener("scroll", markSoon, { passive: true });
  addEventListener("resize", markSoon);
  toggle.hidden = false;
  nav.querySelector(".find").hidden = false;
  nav.classList.add("ready");
  // Browsers may restore the search of an earlier visit.
  filter();
  reveal();
  mark();
})();
