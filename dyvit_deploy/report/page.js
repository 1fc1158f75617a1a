"use strict";
// Without this script the page shows the last stage of every gallery, as on paper.
document.documentElement.classList.add("js");
const galleries = [...document.querySelectorAll(".gallery")].map((gallery) => ({
  gallery, slider: gallery.querySelector("input"), said: gallery.querySelector("output"),
}));
function show({ gallery, slider, said }) {
  const step = said.dataset.steps.split("|")[slider.value];
  gallery.dataset.stage = slider.value;
  said.textContent = step;
  slider.setAttribute("aria-valuetext", step);
}
for (const moved of galleries) {
  moved.slider.addEventListener("input", () => {
    for (const other of galleries) {  // all at the same stage, so that artifacts can be compared
      other.slider.value = moved.slider.value;
      show(other);
    }
  });
  show(moved);
}
// Browsers that print closed details closed, whatever the style sheet says.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not([open])")) {
    closed.dataset.closed = "";
    closed.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-closed]")) {
    delete opened.dataset.closed;
    opened.open = false;
  }
});
