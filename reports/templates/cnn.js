(() => {
  for (const maps of document.querySelectorAll("#cnn .maps")) {
    const select = maps.querySelector("select");
    const show = () => { maps.dataset.map = select.value; };
    select.addEventListener("change", show);
    // Browsers may restore the choice of an earlier visit.
    show();
  }
})();
