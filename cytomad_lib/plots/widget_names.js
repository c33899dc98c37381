// For screen readers. ipywidgets shows the name of a slider beside it but does not give it to the
// handle that has the focus, and it replaces the words below the figure without announcing them.
(() => {
  if (window.cytomadNames) return;
  const nameAll = () => {
    for (const line of document.querySelectorAll(".cytomad-explorer .widget-slider")) {
      const handle = line.querySelector(".noUi-handle, .ui-slider-handle");
      const label = line.querySelector(".widget-label");
      const value = line.querySelector(".widget-readout");
      if (!handle || !label || !value) continue; // the parts of a widget appear one by one
      handle.setAttribute("role", "slider");
      handle.setAttribute("aria-label", label.textContent);
      handle.setAttribute("aria-valuetext", value.textContent);
    }
    for (const image of document.querySelectorAll(".cytomad-explorer img")) {
      image.alt = "The figure that the words below describe";
    }
    // A live region must exist before its words change, so it is the element that stays.
    for (const words of document.querySelectorAll(".cytomad-words .widget-html-content")) {
      words.setAttribute("aria-live", "polite");
    }
  };
  window.cytomadNames = new MutationObserver(nameAll);
  window.cytomadNames.observe(document.body, { childList: true, subtree: true, characterData: true });
  nameAll();
})();
