(() => {
  for (const block of document.querySelectorAll("#errors .by-slide")) {
    const select = block.querySelector("select");
    const cards = block.querySelectorAll("li[data-slide]");
    const show = () => {
      for (const card of cards) card.hidden = select.selectedIndex > 0 && card.dataset.slide !== select.value;
    };
    select.addEventListener("change", show);
    // Browsers may restore the choice of an earlier visit.
    show();
    // Readers of a printed page cannot choose a slide, so print all.
    addEventListener("beforeprint", () => { for (const card of cards) card.hidden = false; });
    addEventListener("afterprint", show);
  }
})();
