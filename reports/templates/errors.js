(() => {
  for (const block of document.querySelectorAll("#errors .by-slide")) {
    const select = block.querySelector("select");
    const cards = block.querySelectorAll("li[data-slide]");
    const show = () => {
      for (const card of cards) card.hidden = select.selectedIndex > 0 && card.dataset.slide !== select.value;
    };
    select.addEventListener("change", show);
    // A browser that restores the choice of an earlier visit shows what it says.
    show();
    // On paper there is nothing to choose from.
    addEventListener("beforeprint", () => { for (const card of cards) card.hidden = false; });
    addEventListener("afterprint", show);
  }
})();
