"use strict";
// Without this script, and in print, the page shows the last stage of every gallery.
document.documentElement.classList.add("js");
const galleries = [...document.querySelectorAll(".gallery")].map((gallery) => ({
  gallery, slider: gallery.querySelector("input"), output: gallery.querySelector("output"),
}));
function show({ gallery, slider, output }) {
  const step = output.dataset.steps.split("|")[slider.value];
  gallery.dataset.stage = slider.value;
  output.textContent = step;
  slider.setAttribute("aria-valuetext", step);
}
for (const moved of galleries) {
  moved.slider.addEventListener("input", () => {
    // All galleries show the same stage, so that artifacts can be compared.
    for (const other of galleries) {
      other.slider.value = moved.slider.value;
      show(other);
    }
  });
  show(moved);
}
// Some browsers print closed details closed, whatever the style sheet says.
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
